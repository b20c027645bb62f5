"""The wall around the server: who may ask, and what every answer lets browsers do.

The server is for one person. Other pages that this person's browser shows must not read from it (names other
than its own are refused: an attacker's name may be made to lead to 127.0.0.1), must not send to it (a POST
has to come from its own pages), and must not show it within them. Where it listens beyond this machine, or
where others share the machine, a random word in the address opens it, and a cookie holds it from then on.
"""

import ipaddress
import secrets
import socket
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

TOKEN = "token"
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'none'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With no-referrer, browsers would call the origin of a page's own POST null.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
OPENED = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Opened</title>
<meta http-equiv="refresh" content="0; url=./"></head>
<body><p><a href="./">Go on to the atlas</a></p></body></html>
"""
"""What answers the address with the word: a redirect would not send a strict cookie along where the click was
on another site's page; a page of its own does."""


@dataclass(frozen=True)
class Door:
    """A server's door: the names under which it is asked, and the word that opens it.

    Attributes:
        local: only this machine reaches it.
        names: of this machine and as given, other than addresses.
        token: the word; None: whoever reaches the server may ask.
        cookie: the name of its cookie: ports of a machine share their cookies.
    """

    local: bool
    names: frozenset[str]
    token: str | None
    cookie: str

    @classmethod
    def at(cls, host: str, port: int, with_token: bool = False) -> "Door":
        """Make the door of a server that listens at an address."""
        local = is_local(host)
        names = {"localhost"} if local else {"localhost", host, socket.gethostname(), socket.getfqdn()}
        token = None if local and not with_token else secrets.token_urlsafe(32)
        return cls(local, frozenset(each.lower() for each in names), token, f"sae_dist_{port}")

    def knows(self, host: str | None) -> bool:
        """Tell whether a Host header names this server; its port may be another's that leads here."""
        name = urlsplit(f"//{host}").hostname if host and not set(host) & set("/?#@\\ ") else None
        if name is None:
            return False
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return name.removesuffix(".") in self.names
        # No name of an attacker's: what answers there is what the user typed.
        return not self.local or address.is_loopback

    def opens(self, word: str) -> bool:
        """Tell in constant time whether a word is the token."""
        return self.token is None or secrets.compare_digest(word.encode(), self.token.encode())


def is_local(host: str) -> bool:
    """Tell whether an address is this machine's alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass
class Guard:
    """A wall around an app of Starlette: asks for name, word and origin, and adds the headers."""

    app: ASGIApp
    door: Door
    headers: dict[str, str] = field(default_factory=lambda: dict(HEADERS))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "websocket":
            await WebSocketClose()(scope, receive, send)
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = self._answer(scope)

        async def adding(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for key, value in self.headers.items():
                    headers.setdefault(key, value)
            await send(message)

        await (answer or self.app)(scope, receive, adding)

    def _answer(self, scope: Scope) -> Response | None:
        """Return the answer to a request that is not passed on."""
        headers = Headers(scope=scope)
        if not self.door.knows(headers.get("host")):
            return PlainTextResponse("This server is not known by that name.\n", 421)
        if self.door.token is not None:
            given = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=64).get(TOKEN)
            if given is not None and scope["path"] == "/" and scope["method"] == "GET":
                return self._opened(given[-1])
            if not self.door.opens(_cookie(headers, self.door.cookie)):
                return PlainTextResponse(
                    "Open the address that sae-dist serve printed: it has a word that opens these pages.\n",
                    403,
                )
        if scope["method"] not in ("GET", "HEAD") and not _own(headers):
            return PlainTextResponse("This may only be sent from the server's own pages.\n", 403)
        return None

    def _opened(self, word: str) -> Response:
        if not self.door.opens(word):
            return PlainTextResponse("The word in this address is not the server's.\n", 403)
        answer = HTMLResponse(OPENED, headers={"Referrer-Policy": "no-referrer"})
        answer.set_cookie(self.door.cookie, self.door.token or "", httponly=True, samesite="strict")
        return answer


def _own(headers: Headers) -> bool:
    """Tell whether a request was sent from a page of the server's own."""
    origin, host = headers.get("origin", ""), headers.get("host", "")
    return origin in (f"http://{host}", f"https://{host}")


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""
