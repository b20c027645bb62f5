"""The search box: what is looked for, and the latents that were found."""

from collections.abc import Mapping
from threading import Lock
from typing import Any

from sae_dist.core.errors import ConfigError
from sae_dist.serve.asked import choice, text, whole
from sae_dist.serve.asking import MOST_QUERY, SEARCHES, token_id
from sae_dist.serve.links import Links
from sae_dist.serve.site import Site
from sae_dist.serve.words import number

HITS = 30


class Search:
    """Searches in an atlas, one at a time: some read all of the text."""

    def __init__(self, site: Site):
        self.site = site
        self._lock = Lock()

    def answer(self, given: Mapping[str, str], links: Links) -> str | int:
        """Render what was found; of a number alone, return the latent to go to.

        Raises:
            Refused: the question is too long, or of no known kind.
        """
        asked = text(given, "q", MOST_QUERY)
        by = choice(given, "by", SEARCHES, "text")
        latent = asked.strip().removeprefix("#")
        if by == "text" and latent.isascii() and latent.isdecimal() and len(latent) < 12:
            if int(latent) < self.site.atlas.num_latents:
                return int(latent)
        hits, said, score = self._hits(asked, by) if asked.strip() else ([], "Give words to look for.", "")
        rows = self.site.list_rows(self.site.listing.rows([each.latent for each in hits]), links)
        return self.site.rendered(
            "found.html",
            links,
            "Search",
            searched={"q": asked, "by": by},
            by=SEARCHES[by],
            said=said,
            score=score,
            rows=[row | {"score": number(hit.score)} for row, hit in zip(rows, hits, strict=True)],
        )

    def _hits(self, asked: str, by: str) -> tuple[list[Any], str, str]:
        """Return what was found, how, and what the scores are."""
        atlas = self.site.atlas
        wanted: Any = asked
        if by in ("together", "direction"):
            wanted = whole({by: asked.strip()}, by, 0, atlas.num_latents - 1, 0)
        elif by == "token":
            wanted = token_id(atlas, asked)
        try:
            with self._lock:
                found = atlas.find(**{by: wanted}, top=HITS)
        except ConfigError as error:
            return [], str(error), ""
        many = f"{len(found.hits)} latent{'s' * (len(found.hits) != 1)}"
        return list(found.hits), f"{many}, {found.how}.", found.score
