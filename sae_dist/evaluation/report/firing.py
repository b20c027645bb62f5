"""The firings of one latent, kept while held-out tokens stream by: a bounded amount of each."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sae_dist.evaluation.report.read import Read

TOP, DRAWN = 8, 256
LEFT, RIGHT = 16, 8
BINS = 48
QUANTILES, OF_EACH = 5, 2
"""Ranges of a latent's codes with as many firings each, and contexts shown of each."""


@dataclass(frozen=True)
class Context:
    """A firing and the tokens around it, of the same segment.

    Attributes:
        code: at the token that fires, which is number `at` of `ids`.
        codes: of the same latent at every token; 0 where it is silent.
        row: the number of the activation, if there is no text and `ids` is empty.
    """

    code: float
    at: int
    ids: tuple[int, ...]
    codes: tuple[float, ...]
    row: int

    def same_text(self, other: "Context") -> bool:
        """Return whether two contexts show the same text."""
        return bool(self.ids) and (self.ids, self.at) == (other.ids, other.at)


class Shown(Protocol):
    """A histogram that can be drawn."""

    def shown(self) -> tuple[list[int], float]:
        """Return the counts of equal bins from 0, and where the last ends."""
        ...


class Fired(Protocol):
    """The firings of a latent as a card shows them: `Firing`, or what an atlas says."""

    @property
    def latent(self) -> int:
        """The number of the latent."""
        ...

    @property
    def fired(self) -> int:
        """The number of rows on which it fired."""
        ...

    @property
    def total(self) -> float:
        """The sum of its codes."""
        ...

    @property
    def top(self) -> list[Context]:
        """The contexts of its greatest codes, greatest first."""
        ...

    @property
    def histogram(self) -> Shown:
        """The histogram of the codes."""
        ...

    def drawn(self) -> list[tuple[str, list[Context]]]:
        """Return contexts drawn at random from each range of the codes, and what range that is."""
        ...


class Histogram:
    """A histogram of positive values, in equal bins from 0 on whose width doubles when values are larger."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.end = 0.0

    def add(self, value_P: np.ndarray) -> None:
        """Count some values, at least one."""
        largest = float(value_P.max())
        self.end = self.end or largest
        while largest > self.end:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.end *= 2
        place_P = np.minimum((value_P / self.end * BINS).astype(np.int64), BINS - 1)
        self.counts += np.bincount(place_P, minlength=BINS)

    def shown(self) -> tuple[list[int], float]:
        """Return the counts of the bins up to the last that holds anything, and where that one ends."""
        last = int(np.flatnonzero(self.counts).max(initial=-1)) + 1
        return self.counts[:last].tolist(), self.end * last / BINS


class Firing:
    """The firings of one latent.

    Attributes:
        fired: number of rows on which it fired; total: sum of its codes.
        top: contexts of the greatest codes, one for each segment, no two alike, greatest first.
    """

    def __init__(self, latent: int):
        self.latent = latent
        self.fired, self.total = 0, 0.0
        self.histogram = Histogram()
        self.top: list[Context] = []
        self._drawn: list[tuple[float, Context]] = []
        self._random = np.random.default_rng(latent)

    def add(self, read: Read, row_P: np.ndarray, value_P: np.ndarray) -> None:
        """Add the latent's codes (above 0) on some rows of a chunk."""
        self.fired += len(row_P)
        self.total += float(value_P.sum(dtype=np.float64))
        self.histogram.add(value_P)
        place_P = read.place_R[row_P]
        code_T = None
        if read.text is not None:
            code_T = np.zeros(len(read.text.ids_T), np.float32)
            code_T[place_P] = value_P
        for p in _best_of_segments(read, place_P, value_P):
            if len(self.top) == TOP and value_P[p] <= self.top[-1].code:
                break
            self._add_top(_context(read, code_T, place_P[p], value_P[p]))
        draw_P = self._random.random(len(row_P))
        limit = self._drawn[-1][0] if len(self._drawn) == DRAWN else 1.0
        for p in np.flatnonzero(draw_P < limit):
            self._drawn.append((float(draw_P[p]), _context(read, code_T, place_P[p], value_P[p])))
        self._drawn.sort(key=lambda pair: pair[0])
        del self._drawn[DRAWN:]

    def _add_top(self, context: Context) -> None:
        alike = next((each for each in self.top if context.same_text(each)), None)
        if alike is not None:
            if alike.code >= context.code:
                return
            self.top.remove(alike)
        self.top.append(context)
        self.top.sort(key=lambda each: -each.code)
        del self.top[TOP:]

    def drawn(self) -> list[tuple[str, list[Context]]]:
        """Return contexts drawn at random from each range of the latent's codes, and what range that is."""
        found = self.quantiles(QUANTILES, OF_EACH)
        edge = 100 / max(len(found), 1)
        return [
            (f"{100 - edge * (n + 1):.0f} to {100 - edge * n:.0f} % ({low:.3g} to {high:.3g})", chosen)
            for n, (low, high, chosen) in enumerate(found)
            if chosen
        ]

    def quantiles(self, parts: int, each: int) -> list[tuple[float, float, list[Context]]]:
        """Split the firings into parts of equal number, greatest codes first.

        Returns:
            For each part its smallest and greatest code, and `each` contexts drawn at random from it, none of
            them among the top ones. At most DRAWN firings are used, themselves a random draw.
        """
        ordered = sorted(range(len(self._drawn)), key=lambda n: -self._drawn[n][1].code)
        found: list[tuple[float, float, list[Context]]] = []
        shown = list(self.top)
        for part in np.array_split(np.array(ordered, np.int64), parts):
            if not len(part):
                continue
            members = [self._drawn[n][1] for n in part]
            chosen: list[Context] = []
            for n in sorted(part):
                context = self._drawn[n][1]
                if len(chosen) < each and not any(_twice(context, other) for other in shown):
                    chosen.append(context)
                    shown.append(context)
            found.append((members[-1].code, members[0].code, chosen))
        return found


def _twice(context: Context, other: Context) -> bool:
    return context == other or context.same_text(other)


def _best_of_segments(read: Read, place_P: np.ndarray, value_P: np.ndarray) -> np.ndarray:
    """Return which codes are the greatest of their segment, greatest first; without text, of the chunk."""
    if read.text is None:
        return np.argsort(-value_P, kind="stable")[:TOP]
    order_P = np.lexsort((place_P, -value_P))
    _, leads = np.unique(read.text.segment_T[place_P][order_P], return_index=True)
    return order_P[np.sort(leads)]


def _context(read: Read, code_T: np.ndarray | None, place: int, code: float) -> Context:
    if read.text is None or code_T is None:
        return Context(float(code), 0, (), (), int(place))
    begin = max(0, place - LEFT)
    window = slice(begin, place + RIGHT + 1)
    inside = read.text.segment_T[window] == read.text.segment_T[place]
    return Context(
        code=float(code),
        at=int(inside[: place - begin].sum()),
        ids=tuple(read.text.ids_T[window][inside].tolist()),
        codes=tuple(code_T[window][inside].tolist()),
        row=int(place),
    )
