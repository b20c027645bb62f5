"""The token source of a run: lanes of packed chunks, which can be opened at any position."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import numpy as np

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.text import print_line
from sae_dist.core.types import LEFT_OUT, LlmFacts, Position, TokenChunk
from sae_dist.tokens.encoder import Encoder
from sae_dist.tokens.hf import open_dataset
from sae_dist.tokens.indexed import Corpus, IndexedDocuments
from sae_dist.tokens.kept import CODE, DocumentTokens, Kept, TokensOf
from sae_dist.tokens.packing import Packing
from sae_dist.tokens.shards import ShardCorpus
from sae_dist.tokens.text import FolderCorpus, PythonCorpus

DEFAULT_CONTEXT = 256
WORDS = {
    "special": "being special tokens",
    "masked": "their attention mask",
    "listed": "tokens.exclude_ids",
    "roles": "tokens.roles",
    "documents": "damage",
}
"""What messages call the reasons of `LEFT_OUT`."""
SAMPLED = 24
"""Documents from which the tokens of a pass are estimated."""
NAMED = 8
"""Documents that cannot be used are named up to this many, then only counted."""


class Documents(Protocol):
    """The interface of each kind of source: the documents of a lane in order, from any place on."""

    def documents(self, lane: int, epoch: int, first: int) -> Iterator[tuple[int, DocumentTokens]]:
        """Yield (place, tokens) of a lane's documents in one epoch, from `first` on.

        Places grow, and need not be consecutive. Opening at `first` must not tokenise earlier documents.
        """
        ...


class TokenSource:
    """Lanes of token chunks, each with exactly `packing.rows` kept tokens.

    Args:
        kept: which tokens are; None: all but the special ones of `packing`.
        short: the text may be short: the last chunk of a lane has what is left, and a lane may be empty.
    """

    def __init__(
        self,
        documents: Documents,
        packing: Packing,
        *,
        field: str,
        lanes: int,
        epochs: int | None,
        kept: Kept | None = None,
        short: bool = False,
    ):
        self.documents, self.packing, self.short = documents, packing, short
        self.field, self.lanes, self.epochs = field, lanes, epochs
        self.kept = kept or Kept(packing.prefix, packing.suffix)
        self.named = 0

    def amount(self) -> int | None:
        """Estimate how many tokens a pass keeps, from documents spread over it; None: it is a stream."""
        if not isinstance(self.documents, IndexedDocuments):
            return None
        numbers = self.documents.numbers
        sample = numbers[np.linspace(0, len(numbers) - 1, min(SAMPLED, len(numbers))).astype(int)]
        kept = [int((self.kept.read(self.documents.read(int(each))).code_T == 0).sum()) for each in sample]
        return round(sum(kept) / len(kept) * len(numbers))

    def name(self, problem: str) -> None:
        """Tell the user of a document that cannot be used, unless there were many before."""
        self.named += 1
        if self.named <= NAMED:
            last = "; more are only counted (stream/skipped_documents)" if self.named == NAMED else ""
            print_line(f"left out: {problem}{last}")

    def open(self, lane: int, start: Position | None) -> Iterator[TokenChunk]:
        """Yield the chunks of a lane from position `start` on (None: the first) until the epochs end.

        `start` is the start of a chunk. Tokens at the very end that do not fill a chunk are left out, unless
        the text may be short.

        Raises:
            ConfigError: a whole pass over the lane's documents gave no token.
            DataError: a document is damaged.
        """
        reader = LaneReader(self, lane, start)
        index = start["chunk"] if start else 0
        while True:
            at: Position = {"chunk": index, **reader.position()}
            packed = self.packing.pack(reader, self.short)
            if packed is None:
                return
            number = index * self.lanes + lane
            yield TokenChunk(number=number, lane=lane, start=at, left_out=reader.taken(), **packed)
            index += 1


class LaneReader:
    """A cursor through the documents of one lane, epoch after epoch."""

    def __init__(self, source: TokenSource, lane: int, start: Position | None):
        self.source, self.lane = source, lane
        self.epoch = start["epoch"] if start else 0
        self.place = start["document"] if start else 0
        self.offset = start["offset"] if start else 0
        self.whole_epoch = self.place == 0 and self.offset == 0
        self.found_tokens = False
        self.usable = self.unusable = 0
        self.problem: str | None = None
        self.documents = source.documents.documents(lane, self.epoch, self.place)
        self.tokens: TokensOf | None = None
        self.left_out = np.zeros(len(LEFT_OUT) + 1, np.int64)

    def position(self) -> Position:
        """Return the position of the next token, without reading the next document."""
        return {"epoch": self.epoch, "document": self.place, "offset": self.offset}

    def rest(self) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Return what is left of the current document, as `Reader.rest` does; None: the epochs are over."""
        while self.tokens is None or self.offset >= len(self.tokens.ids_T):
            if self.source.epochs is not None and self.epoch >= self.source.epochs:
                return None
            found = next(self.documents, None)
            if found is None:
                self._next_epoch()
            else:
                self._load(*found)
        return self.place, self.tokens.ids_T[self.offset :], self.tokens.code_T[self.offset :] == 0

    def advance(self, tokens: int) -> None:
        """Move forward by `tokens` tokens; at its end, the document is closed at once."""
        assert self.tokens is not None
        if self.offset == 0:
            self._count(self.tokens.removed)
        code_T = self.tokens.code_T[self.offset : self.offset + tokens]
        if code_T.any():
            self.left_out += np.bincount(code_T, minlength=len(self.left_out))
        self.offset += tokens
        if self.offset == len(self.tokens.ids_T):
            self.place, self.offset, self.tokens = self.place + 1, 0, None

    def taken(self) -> dict[str, int]:
        """Return what was left out since the last call, by reason; reasons without any are not in it."""
        found = {reason: int(self.left_out[code]) for reason, code in CODE.items() if self.left_out[code]}
        self.left_out[:] = 0
        return found

    def _count(self, removed: dict[str, int]) -> None:
        for reason, count in removed.items():
            self.left_out[CODE[reason]] += count

    def _load(self, place: int, document: DocumentTokens) -> None:
        # An offset belongs to the document it was saved in; a later one, reached by skipping, starts at 0.
        self.offset = self.offset if place == self.place else 0
        self.place = place
        if document.problem is not None:
            self.unusable, self.problem = self.unusable + 1, document.problem
            self.source.name(document.problem)
            self._count({"documents": 1})
        else:
            self.usable += 1
        self.tokens = self.source.kept.read(document)
        self.found_tokens = self.found_tokens or not self.tokens.code_T.all()
        if not len(self.tokens.ids_T):
            self._count(self.tokens.removed)
            self.place, self.offset, self.tokens = place + 1, 0, None

    def _why(self) -> str:
        """Say what was left out of a pass in which nothing was kept."""
        counts = {WORDS[reason]: self.left_out[code] for reason, code in CODE.items() if self.left_out[code]}
        found = ", ".join(f"{count} by {reason}" for reason, count in counts.items())
        return (f" (left out: {found})" if found else "") + (f": {self.problem}" if self.problem else "")

    def _next_epoch(self) -> None:
        if self.whole_epoch and not self.found_tokens and not self.source.short:
            wrong = ConfigError if self.epoch == 0 else DataError
            raise wrong(
                f"{self.source.field} has no text for lane {self.lane} of shuffle.lanes={self.source.lanes} "
                f"in pass {self.epoch + 1}; use fewer lanes or give more text{self._why()}"
            )
        if self.whole_epoch and self.unusable > self.usable:
            raise DataError(
                f"{self.source.field}: {self.unusable} of {self.unusable + self.usable} documents of lane "
                f"{self.lane} cannot be used, among them: {self.problem}"
            )
        self.epoch, self.place, self.offset = self.epoch + 1, 0, 0
        self.whole_epoch, self.found_tokens = True, False
        self.usable = self.unusable = 0
        self.documents = self.source.documents.documents(self.lane, self.epoch, 0)


def open_tokens(
    cfg: TokensConfig,
    facts: LlmFacts,
    *,
    lanes: int,
    seed: int,
    rows: int,
    held_out: bool | None,
    short: bool = False,
) -> TokenSource:
    """Open the token source that `cfg` describes.

    Args:
        rows: kept tokens per chunk.
        held_out: open the held-out documents, in an order that does not depend on the seed; false: all other
            documents, permuted by (seed, epoch); None: all of a corpus of files, in the first order.
        short: see `TokenSource`.

    Raises:
        ConfigError: the source does not exist, is damaged, or has fewer documents than lanes.
    """
    context = min(cfg.context or DEFAULT_CONTEXT, facts.context or cfg.context or DEFAULT_CONTEXT)
    special = len(facts.prefix) + len(facts.suffix)
    if context <= special:
        raise ConfigError(
            f"tokens.context={context} leaves no room next to {special} special tokens; "
            f"use at least {special + 1}"
        )
    packing = Packing(context, facts.prefix, facts.suffix, rows, shared=facts.packed)
    kept = Kept.of(facts, cfg.exclude_ids)
    documents, field = _open_kind(cfg, facts, lanes=lanes, seed=seed, held_out=held_out, short=short)
    return TokenSource(
        documents, packing, field=field, lanes=lanes, epochs=cfg.epochs, kept=kept, short=short
    )


def held_out_tokens(cfg: TokensConfig, facts: LlmFacts, *, seed: int, rows: int) -> TokenSource:
    """Open the held-out documents in one lane, for one pass: a second pass would count tokens twice.

    Raises:
        ConfigError: see `open_tokens`.
    """
    once = replace(cfg, epochs=1)
    return open_tokens(once, facts, lanes=1, seed=seed, rows=rows, held_out=True)


def _open_kind(
    cfg: TokensConfig, facts: LlmFacts, *, lanes: int, seed: int, held_out: bool | None, short: bool
) -> tuple[Documents, str]:
    if cfg.kind == "hf":
        documents = open_dataset(cfg, facts, lanes=lanes, seed=seed, held_out=bool(held_out))
        return documents, f"tokens.dataset={cfg.dataset}"
    if cfg.kind == "text":
        encoder = Encoder(facts)
        encoder.check_size(facts.name)
        corpus: Corpus = FolderCorpus(cfg.path, encoder) if cfg.path else PythonCorpus(encoder)
    elif cfg.kind == "webdataset":
        if not cfg.path:
            raise ConfigError("tokens.path is missing; give tar files such as shards/x-{000..009}.tar")
        corpus = ShardCorpus(cfg.path, facts.vocab_size)
    else:
        raise ConfigError(f"tokens.kind={cfg.kind} is unknown; use text, webdataset or hf")
    found = IndexedDocuments(corpus, lanes=lanes, seed=seed, held_out=held_out, few=short)
    return found, corpus.field
