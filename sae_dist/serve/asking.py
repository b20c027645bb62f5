"""Questions to the list and the search, as an address has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.labels import STATES
from sae_dist.atlas.read.listing import LISTS, ORDERS, Filter, Key
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import visible
from sae_dist.serve.asked import Refused, choice, real, text, whole

NAMES = {
    "often": "most frequent first",
    "rare": "rarest first",
    "strong": "greatest code first",
    "documents": "most documents first",
    "number": "by number",
}
WHERES = {
    "up": "raises",
    "down": "lowers",
    "lens_up": "raises, through layers",
    "lens_down": "lowers, through layers",
    "tokens": "fires on",
    "next": "comes next",
}
LABELLED, BARE = "labelled", "none"
SAID = {LABELLED: "any label", BARE: "no label", **{state: state for state in STATES}}
SEARCHES = {
    "text": "words",
    "token": "a token",
    "label": "labels",
    "regex": "a pattern",
    "together": "fires with",
    "direction": "nearest to",
}
MOST_QUERY, MOST_TOKEN = 400, 100


@dataclass(frozen=True)
class Asked:
    """The fields of the list's form, as they were written, and where the page begins."""

    order: str
    low: str
    high: str
    state: str
    where: str
    token: str
    silent: bool
    after: Key | None
    before: Key | None

    @classmethod
    def of(cls, given: Mapping[str, str]) -> "Asked":
        """Read the fields.

        Raises:
            Refused: one is not valid.
        """
        real(given, "low"), real(given, "high")
        state = given.get("state", "")
        if state:
            choice(given, "state", SAID, "")
        return cls(
            choice(given, "order", ORDERS, "often"),
            given.get("low", "").strip(),
            given.get("high", "").strip(),
            state,
            choice(given, "where", LISTS, "up"),
            text(given, "token", MOST_TOKEN),
            given.get("silent") == "1",
            _key(given, "after"),
            _key(given, "before"),
        )

    @property
    def filtered(self) -> bool:
        """The answer to: is the list other than of all latents that fire?"""
        return bool(self.low or self.high or self.state or self.token or self.silent)

    def address(self, **change: str) -> str:
        """Return the query of the list's address, with some fields changed and no place in the list."""
        fields = {
            "order": self.order if self.order != "often" else "",
            "low": self.low,
            "high": self.high,
            "state": self.state,
            "where": self.where if self.token else "",
            "token": self.token,
            "silent": "1" if self.silent else "",
        } | change
        return "?" + urlencode({key: value for key, value in fields.items() if value})

    def filter(self, atlas: Atlas) -> Filter:
        """Return which latents are listed.

        Raises:
            Refused: the token is none.
        """
        given = {"low": self.low, "high": self.high}
        among = without = None
        if self.state == BARE:
            without = frozenset(each.latent for each in atlas.labels.all())
        elif self.state:
            state = None if self.state == LABELLED else self.state
            among = frozenset(each.latent for each in atlas.labels.all(state))
        token = token_id(atlas, self.token) if self.token else None
        return Filter(real(given, "low"), real(given, "high"), self.silent, token, self.where, among, without)


def written(key: Key) -> str:
    """Return a place in the list as an address has it."""
    return f"{key[0]!r}~{key[1]}"


def _key(given: Mapping[str, str], name: str) -> Key | None:
    found = given.get(name, "")
    if not found:
        return None
    value, _, latent = found.partition("~")
    number = real({name: value}, name)
    if number is None or not latent:
        raise Refused(400, f"{name}={found[:40]} is no place in the list")
    return number, whole({name: latent}, name, 0, 2**32, 0)


def token_id(atlas: Atlas, written_as: str) -> int:
    """Return the id of a token given as its text, with or without the space before it, or as `#123`.

    Raises:
        Refused: it is no single token.
    """
    plain = written_as.strip()
    if plain.startswith("#") and plain[1:].isascii() and plain[1:].isdecimal():
        return whole({"token": plain[1:]}, "token", 0, 2**32 - 1, 0)
    try:
        for form in dict.fromkeys((written_as, f" {plain}", plain)):
            if len(ids := atlas.words.ids(form)) == 1:
                return ids[0]
    except ConfigError as error:
        raise Refused(400, f"{error}, such as #123") from None
    raise Refused(
        400, f"{visible(written_as, '')!r} is {len(ids)} tokens; give one, or its number such as #123"
    )
