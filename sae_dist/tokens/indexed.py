"""Documents that have numbers: in a new order in each epoch, and dealt out to lanes."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.tokens.documents import HELD_OUT_ONE_IN
from sae_dist.tokens.kept import DocumentTokens, ForeignIds, UnusableDocument


class Corpus(Protocol):
    """A collection of documents, numbered 0 to len - 1. `field` is its setting, such as `tokens.path=...`."""

    field: str

    def __len__(self) -> int: ...

    def held_out(self) -> np.ndarray:
        """Return a mask [len] of the documents held out for evaluation, the same in every run."""
        ...

    def read(self, number: int) -> DocumentTokens:
        """Return the tokens of one document.

        Raises:
            UnusableDocument: it is damaged, or no text.
            ForeignIds: it has tokens that the LLM has not.
            DataError: its file is gone.
        """
        ...

    def where(self, number: int) -> str:
        """Name a document for a person: its file, and the place in it."""
        ...


def lowest_hashes(hashes: np.ndarray) -> np.ndarray:
    """Mark the lowest hashes, one entry in HELD_OUT_ONE_IN; at least one if there are two entries."""
    count = max(len(hashes) // HELD_OUT_ONE_IN, min(1, len(hashes) // 2))
    mask = np.zeros(len(hashes), bool)
    mask[np.argsort(hashes, kind="stable")[:count]] = True
    return mask


def random_keys(seed: int, epoch: int, count: int) -> np.ndarray:
    """Draw `count` random 64-bit numbers from numpy's raw stream, which never changes (`permutation` may)."""
    return np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(count)


class IndexedDocuments:
    """The training or the held-out documents of a corpus, read lane by lane.

    Args:
        held_out: the held-out documents; false: all others; None: all there are, in the same order as these.
        few: lanes without a document are fine.

    Raises:
        ConfigError: fewer documents than lanes.
    """

    def __init__(self, corpus: Corpus, *, lanes: int, seed: int, held_out: bool | None, few: bool = False):
        self.corpus, self.lanes = corpus, lanes
        self.seed = seed if held_out is False else 0
        self.same_every_epoch = held_out is not False
        mask = np.ones(len(corpus), bool) if held_out is None else corpus.held_out() == held_out
        self.numbers = np.flatnonzero(mask)
        if len(self.numbers) < lanes and not few:
            found = f"{len(self.numbers)} document{'s' * (len(self.numbers) != 1)}"
            which = f"{found} held out" if held_out else f"{found} to train on"
            raise ConfigError(
                f"{corpus.field} has {which}, fewer than shuffle.lanes={lanes}; "
                "use fewer lanes or give more text"
            )
        self._order: tuple[int, np.ndarray] = (-1, self.numbers)

    def documents(self, lane: int, epoch: int, first: int) -> Iterator[tuple[int, DocumentTokens]]:
        """Yield (place within the lane, tokens) of a lane's documents in one epoch, from `first` on.

        Raises:
            DataError: a file is gone, or its documents are not this LLM's; see `read`.
        """
        mine = self._permuted(0 if self.same_every_epoch else epoch)[lane :: self.lanes]
        for place in range(first, len(mine)):
            yield place, self.read(int(mine[place]))

    def read(self, number: int) -> DocumentTokens:
        """Return the tokens of one document, none of one that cannot be used.

        Raises:
            DataError: its file is gone, or it has tokens that the LLM has not.
        """
        try:
            return self.corpus.read(number)
        except UnusableDocument as error:
            return DocumentTokens.unusable(f"{self.corpus.where(number)} {error}")
        except ForeignIds as error:
            raise DataError(f"{self.corpus.where(number)}: {error}") from error

    def _permuted(self, epoch: int) -> np.ndarray:
        if self._order[0] != epoch:
            keys = random_keys(self.seed, epoch, len(self.numbers))
            self._order = epoch, self.numbers[np.argsort(keys, kind="stable")]
        return self._order[1]
