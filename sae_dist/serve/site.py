"""The pages of an atlas, rendered: the same for a server and for a folder of files."""

import getpass
import os
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.labels import STATES, Label
from sae_dist.atlas.read.listing import STEP, Filter, Listing
from sae_dist.core.errors import ConfigError
from sae_dist.core.template import Templates
from sae_dist.serve import chart, view
from sae_dist.serve.asked import Refused, choice, text
from sae_dist.serve.asking import NAMES, SAID, SEARCHES, WHERES, Asked, written
from sae_dist.serve.links import Links
from sae_dist.serve.tries import DOSES, MOST_TEXT
from sae_dist.serve.words import number, passage, share, short

PAGES = Path(__file__).with_name("pages")
WRITABLE = 2
"""The mode of os.access that asks for writing."""
AROUND = 256
"""Tokens on each side of a place that its own page shows."""
TIMES = 2
"""The dose that the steering box begins with, in 99.9th percentiles of the latent's codes."""
HITS = 30
LAYER = re.compile(r"(?:layers|h|blocks|layer)\.(\d+)")


class Site:
    """An atlas as pages. Several threads may use it.

    Args:
        no_model: tells why sentences cannot be tried; returns None where they can, or may be.
    """

    def __init__(self, atlas: Atlas, *, no_model: Any = lambda: None, author: str = ""):
        self.atlas, self.listing = atlas, Listing(atlas)
        self.no_model, self.author = no_model, author
        self._templates = Templates(PAGES, {"number": number})

    @property
    def facts(self) -> Mapping[str, Any]:
        """The facts of the manifest."""
        return self.atlas.facts

    @cached_property
    def name(self) -> str:
        """The model and the place in it, in a line."""
        facts = self.facts
        hooks = facts["hook"] + (f" to {facts['target_hook']}" if facts.get("target_hook") else "")
        return f"{facts['model']}, {hooks}"

    @cached_property
    def kind(self) -> str:
        """The kind of the dictionary, in words."""
        facts = self.facts
        what = "transcoder" if facts.get("target_hook") else "autoencoder"
        each = f", {facts['k']} at a token" if facts.get("k") else ""
        return f"{facts['kind']} {what}, {self.atlas.num_latents:,} latents{each}"

    @property
    def no_labels(self) -> str | None:
        """The reason why labels cannot be kept; None: they can."""
        folder, file = self.atlas.folder, self.atlas.labels.path
        try:
            self.atlas.labels.history(0)
        except ConfigError as error:
            return f"Labels cannot be read: {error}"
        if all(os.access(each, WRITABLE) for each in (folder, file) if each.exists()):
            return None
        return f"Labels cannot be kept here: {folder} is read-only."

    def rendered(self, page: str, links: Links, title: str, **values: Any) -> str:
        """Render a page with what all of them need."""
        common = {
            "links": links,
            "server": links.chosen is None,
            "title": f"{title} – {self.name}",
            "name": self.name,
            "text": self.facts["text"],
            "searches": SEARCHES,
            "searched": {"q": "", "by": "text"},
            "most_text": MOST_TEXT,
            "doses": DOSES,
        }
        return self._templates.rendered(page, common | values)

    def start(self, given: Mapping[str, str], links: Links) -> str:
        """Render the start: what the dictionary is, and a page of its latents.

        Raises:
            Refused: a filter is not valid.
        """
        asked = Asked.of(given)
        which = asked.filter(self.atlas)
        page = self.listing.page(which, asked.order, asked.after, asked.before)
        count, total = self.listing.count(which), self.atlas.num_latents
        here = {
            key: f"{links.home}{asked.address(**{key: written(place)})}#list" if place else None
            for key, place in (("after", page.after), ("before", page.before))
        }
        first = f"{links.home}{asked.address()}#list" if asked.after or asked.before else None
        return self.rendered(
            "start.html",
            links,
            "Atlas",
            **self._about(links),
            asked=asked,
            filtered=asked.filtered,
            orders=NAMES,
            states=SAID,
            wheres=self._wheres,
            found=f"{count:,} of {total:,} latents, {NAMES[asked.order]}",
            rows=self.list_rows(page.rows, links),
            first=first,
            **here,
        )

    def chosen(self, latents: Sequence[int], links: Links) -> str:
        """Render the start of static pages of some latents."""
        rows = self.list_rows(self.listing.rows(latents), links)
        found = f"{len(rows):,} of {self.atlas.num_latents:,} latents have a page here"
        return self.rendered("start.html", links, "Atlas", **self._about(links), rows=rows, found=found)

    def _about(self, links: Links) -> dict[str, Any]:
        facts = self.facts
        rates = self.listing.rates
        edge = [f"{links.home}?low={10**low:.4g}&high={10 ** (low + 1 / STEP):.4g}#list" for low, _ in rates]
        fewest = facts.get("few")
        stats = [
            ("latents", f"{self.atlas.num_latents:,}", f"{facts['kind']}"),
            (
                "tokens read",
                short(facts["tokens"]),
                f"{share(facts['kept'] / max(facts['tokens'], 1))} encoded",
            ),
            ("documents", short(facts["documents"]), f"{facts['context'] or '?'} tokens of context"),
            ("never fire", f"{facts['silent']:,}", share(facts["silent"] / self.atlas.num_latents)),
            ("rare", f"{facts['too_rare']:,}", f"fire fewer than {fewest} times" if fewest else ""),
        ]
        out = f" {facts['outliers']:,} outliers were left out." if facts.get("outliers") else ""
        return {
            "heading": self.name,
            "kind": self.kind,
            "lead": f"Every latent, from {facts['text']}.{out}",
            "stats": stats,
            "rates": chart.rates(rates, 1 / STEP, edge if links.chosen is None else [None] * len(rates)),
        }

    @cached_property
    def _wheres(self) -> dict[str, str]:
        """The lists of tokens that the atlas has, by whether the latent that fires most has them."""
        rows = self.listing.page(Filter(), size=1).rows
        first = self.atlas.latent(rows[0]["latent"]) if rows else None
        return {key: words for key, words in WHERES.items() if first is not None and getattr(first, key)}

    def list_rows(self, rows: Sequence[Mapping[str, Any]], links: Links) -> list[dict[str, Any]]:
        """Return latents as the list shows them, with their labels."""
        labels = self._labels([int(row["latent"]) for row in rows])
        return [view.list_row(row, self.atlas, labels.get(row["latent"]), links.latent) for row in rows]

    def latent(self, latent: int, links: Links, around: tuple[int | None, int | None] | None = None) -> str:
        """Render the page of a latent.

        Args:
            around: the latents before and after it; None: the nearest ones that fire.

        Raises:
            ConfigError: it does not exist, or a file is damaged.
        """
        about = self.atlas.latent(latent)
        history = self._history(latent)
        label = history[0] if history else None
        others = [each.latent for each in about.near or ()] + [each.latent for each in about.together or ()]
        words = self.labels_of(others)
        previous, following = around or (self.listing.living(latent, -1), self.listing.living(latent, 1))
        unit = about.quantiles[-1] if about.quantiles else about.most
        return self.rendered(
            "latent.html",
            links,
            f"{latent}: {label.text[:60]}" if label and label.text else f"Latent {latent}",
            number=latent,
            label=label,
            earlier=len(history) - 1,
            remarks=self._remarks(about.count),
            numbers=view.numbers_of(about, self.facts) if about.count else [],
            tabs=view.tabs(self.atlas.examples(latent), about),
            most=number(about.most),
            histogram=chart.codes(about.histogram, about.most) if about.count else "",
            quantiles=view.quantile_rows(about),
            effects=None if about.up or about.down else f"{self.facts.get('effects') or 'there are none'}",
            lens=self.facts.get("lens"),
            **{key: view.logit_rows(getattr(about, key)) for key in ("up", "down", "lens_up", "lens_down")},
            **{key: view.token_rows(getattr(about, key), about) for key in ("tokens", "next")},
            near=view.near_rows(about, words),
            no_near=self.facts.get("near") or "none",
            together=view.together_rows(about, words),
            place=self._place(latent),
            previous=previous,
            following=following,
            states={state: state for state in STATES},
            author=self.author,
            no_labels=self.no_labels,
            no_model=self.no_model(),
            model_words="The model is loaded when it is first asked.",
            dose=f"{TIMES * unit:.3g}",
        )

    def _remarks(self, count: int) -> list[str]:
        kept, few = self.facts["kept"], self.facts.get("few") or 0
        if not count:
            return [f"It never fired on the {kept:,} tokens that were read."]
        if count < few:
            return [f"It fired {count} times on {kept:,} tokens: too few to say much."]
        return []

    def _place(self, latent: int) -> list[tuple[str, str]]:
        facts = self.facts
        layer = LAYER.search(facts["hook"])
        found = [("model", facts["model"]), ("hook", facts["hook"])]
        if layer is not None:
            side = "into" if facts["hook"].endswith(":in") else "out of"
            found.append(("layer", f"{side} layer {layer[1]}, counted from 0"))
        if facts.get("target_hook"):
            found.append(("reconstructs", facts["target_hook"]))
        return [*found, ("latent", f"{latent:,} of {self.atlas.num_latents:,}"), ("dictionary", self.kind)]

    def place(self, latent: int, at: int, links: Links) -> str:
        """Render a wide context of a place, with a latent's codes.

        Raises:
            Refused: there is no such place.
            ConfigError: there is no such latent.
        """
        if not 0 <= at < self.facts["tokens"]:
            raise Refused(404, f"There is no place {at}; they are 0 to {self.facts['tokens'] - 1:,}.")
        most = self.atlas.latent(latent).most
        context = view.shown(self.atlas.context(at, latent, AROUND, AROUND), latent, most, words=passage)
        return self.rendered(
            "place.html", links, f"Latent {latent} at {at}", number=latent, context=context, around=AROUND
        )

    def labels_of(self, latents: Sequence[int]) -> dict[int, str]:
        """Return the words of latents that have some."""
        return {key: each.text for key, each in self._labels(latents).items()}

    def _labels(self, latents: Sequence[int]) -> dict[int, Label]:
        """Return labels; none where their file is damaged, which `no_labels` tells."""
        try:
            return self.atlas.labels.of(latents)
        except ConfigError:
            return {}

    def _history(self, latent: int) -> list[Label]:
        try:
            return self.atlas.labels.history(latent)
        except ConfigError:
            return []

    def label(self, latent: int, given: Mapping[str, str]) -> Label:
        """Keep a label.

        Raises:
            Refused: a field of it is not valid, or it cannot be kept.
        """
        if (why := self.no_labels) is not None:
            raise Refused(409, why)
        words, author = text(given, "text", 2000).strip(), text(given, "author", 80).strip()
        if not words:
            raise Refused(400, "a label needs words")
        state = choice(given, "state", STATES, STATES[0])
        try:
            return self.atlas.labels.set(latent, words, state, author)
        except ConfigError as error:
            raise Refused(400, str(error)) from None


def this_user() -> str:
    """Return the name of the user of this process; empty where the system knows none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
