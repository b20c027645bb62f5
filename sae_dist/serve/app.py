"""The server: its addresses, what each answers, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.serve import asked, tries
from sae_dist.serve.asked import Refused, form
from sae_dist.serve.links import Links
from sae_dist.serve.room import Busy, Room, Stopped
from sae_dist.serve.search import Search
from sae_dist.serve.site import PAGES, Site

ASSETS = {"atlas.css": "text/css", "atlas.js": "text/javascript", "atlas.svg": "image/svg+xml"}
BUSY = "The model is at work on another text; try again in a moment."


class Pages:
    """The answers of all addresses. Pages are made in threads; the model has one of its own."""

    def __init__(self, atlas: Atlas, room: Room, author: str = ""):
        self.room = room
        self.site = Site(atlas, no_model=lambda: room.closed, author=author)
        self.search = Search(self.site)
        self.assets = {name: (PAGES / name).read_bytes() for name in ASSETS}

    def warm(self) -> None:
        """Read what the first page would wait for; what is wrong with it, that page tells."""
        with suppress(SaeDistError):
            self.site.start({}, Links())

    def routed(self) -> Starlette:
        """Return the app of Starlette."""
        get = [
            ("/", self.start),
            ("/find", self.find),
            ("/latent/{latent:int}", self.latent),
            ("/latent/{latent:int}/at/{at:int}", self.place),
            ("/assets/{name}", self.asset),
            ("/sentence", self.sentence),
        ]
        post = [
            ("/latent/{latent:int}/label", self.keep),
            ("/sentence", self.explain),
            ("/steer", self.steer),
        ]
        routes = [Route(path, self._told(answer), methods=["GET"]) for path, answer in get]
        routes += [Route(path, self._told(answer), methods=["POST"]) for path, answer in post]
        return Starlette(routes=routes, exception_handlers={HTTPException: self._http})

    def _told(self, answer: Callable[[Request], Awaitable[Response]]) -> Any:
        """Return an answer whose errors become a page of one line."""

        async def told(request: Request) -> Response:
            try:
                return await answer(request)
            except Refused as error:
                return self._wrong(request, error.status, error.text)
            except Busy:
                return self._wrong(request, 503, BUSY)
            except Stopped:
                return self._wrong(request, 503, "The server ends.")
            except ConfigError as error:
                return self._wrong(request, 404 if "does not exist" in str(error) else 500, str(error))
            except SaeDistError as error:
                return self._wrong(request, 500, str(error))

        return told

    async def _http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = self._wrong(
            request, error.status_code, "There is no such page." if error.status_code == 404 else error.detail
        )
        found.headers.update(error.headers or {})
        return found

    def _wrong(self, request: Request, status: int, text: str) -> Response:
        links = Links.of_path(request.url.path)
        page = self.site.rendered("wrong.html", links, f"{status}", status=status, wrong=text)
        return HTMLResponse(page, status)

    async def start(self, request: Request) -> Response:
        """Answer with the start and a page of the list."""
        return await self._page(request, self.site.start, _query(request))

    async def latent(self, request: Request) -> Response:
        """Answer with the page of a latent."""
        return await self._page(request, self.site.latent, request.path_params["latent"])

    async def place(self, request: Request) -> Response:
        """Answer with a wide context of a place."""
        return await self._page(
            request, self.site.place, request.path_params["latent"], request.path_params["at"]
        )

    async def find(self, request: Request) -> Response:
        """Answer with what a search found, or lead to the latent that was named."""
        links = Links.of_path(request.url.path)
        found = await run_in_threadpool(self.search.answer, _query(request), links)
        if isinstance(found, int):
            return RedirectResponse(links.latent(found) or "", 303)
        return HTMLResponse(found)

    async def asset(self, request: Request) -> Response:
        """Answer with the style sheet, the script or the picture."""
        name = request.path_params["name"]
        if name not in self.assets:
            raise Refused(404, "There is no such file.")
        headers = {"Cache-Control": "no-cache"}
        return Response(self.assets[name], media_type=ASSETS[name], headers=headers)

    async def keep(self, request: Request) -> Response:
        """Keep a label, and lead back to its latent."""
        latent = request.path_params["latent"]
        self.site.atlas.checked(latent)
        await run_in_threadpool(self.site.label, latent, await form(request))
        return RedirectResponse(f"../{latent}", 303)

    async def sentence(self, request: Request) -> Response:
        """Answer with the form for a sentence."""
        return await self._page(request, self._sentence, {}, None, None)

    async def explain(self, request: Request) -> Response:
        """Answer with the latents that fire on a sentence."""
        given = await form(request)
        text = asked.text(given, "text", tries.MOST_TEXT)
        if not text.strip():
            raise Refused(400, "Give a text.")
        latent = self._latent(given) if given.get("latent", "").strip() else None
        try:
            found = await self.room.work(tries.explained(text, latent, self.site.labels_of))
        except ConfigError as error:
            return await self._page(request, self._sentence, given, None, str(error), status=422)
        return await self._page(request, self._sentence, given, found, None)

    def _sentence(
        self, given: Mapping[str, str], found: tries.Explained | None, wrong: str | None, links: Links
    ) -> str:
        return self.site.rendered(
            "sentence.html",
            links,
            "Try a sentence",
            given=given.get("text", ""),
            latent=given.get("latent", ""),
            answer=found,
            wrong=wrong,
            **self._model(),
        )

    async def steer(self, request: Request) -> Response:
        """Answer with what the model writes, as it is and steered."""
        given = await form(request)
        text = asked.text(given, "text", tries.MOST_TEXT)
        if not text.strip():
            raise Refused(400, "Give a prompt.")
        latent = self._latent(given)
        how = asked.choice(given, "how", tries.DOSES, "clamp")
        dose = asked.real(given, "dose")
        tokens = asked.whole(given, "tokens", 1, tries.MOST_NEW, 32)
        if dose is None and how != "ablate":
            raise Refused(400, "dose: give a number")
        wish = tries.written(text, latent, how, dose or 0.0, tokens)
        try:
            found, wrong = await self.room.work(wish), None
        except ConfigError as error:
            found, wrong = None, str(error)
        given = {"text": "", "how": how, "dose": "", "tokens": str(tokens)} | given

        def page(links: Links) -> str:
            values = {"latent": latent, "given": given, "answer": found, "wrong": wrong}
            return self.site.rendered("steered.html", links, "Steering", **values, **self._model())

        return await self._page(request, page, status=422 if wrong else 200)

    def _latent(self, given: Mapping[str, str]) -> int:
        stripped = {"latent": given.get("latent", "").strip()}
        return asked.whole(stripped, "latent", 0, self.site.atlas.num_latents - 1, 0)

    def _model(self) -> dict[str, Any]:
        loaded = "" if self.room.loaded else "The model is loaded first, which takes a moment."
        return {"no_model": self.room.closed, "model_words": loaded}

    @staticmethod
    async def _page(request: Request, make: Callable[..., str], *values: Any, status: int = 200) -> Response:
        """Answer with a page that is made in a thread."""
        links = Links.of_path(request.url.path)
        return HTMLResponse(await run_in_threadpool(make, *values, links), status)


def _query(request: Request) -> Mapping[str, str]:
    """Return the fields of an address; of a field that is there twice the last."""
    if len(request.url.query) > asked.MOST_BYTES // 8:
        raise Refused(414, "The address is too long.")
    return dict(request.query_params)
