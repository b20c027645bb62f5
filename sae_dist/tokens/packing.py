"""Packing of documents into sequences that fill the LLM's context, an exact number of activations at a time.

A segment is prefix + document tokens + suffix; attention never crosses its borders. A document that does not
fit continues in a new segment of the next sequence. For models that cannot keep segments apart, each segment
has a sequence of its own.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

MIN_SEGMENT = 16


class Reader(Protocol):
    """A cursor that moves through documents, token by token."""

    def rest(self) -> tuple[int, np.ndarray, np.ndarray] | None:
        """Return the number, token ids and keep mask of what is left of the current document.

        There is at least one token. None: there are no more documents.
        """
        ...

    def advance(self, tokens: int) -> None:
        """Move forward by `tokens` tokens, at most to the end of the current document."""
        ...


@dataclass(frozen=True)
class Packing:
    """A rule of packing: `rows` kept tokens at a time, in sequences of `context` tokens.

    With `shared` false a sequence holds one segment, and sequences are as long as the longest of a chunk.
    """

    context: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    rows: int
    shared: bool = True

    def pack(self, reader: Reader, partial: bool = False) -> dict[str, Tensor] | None:
        """Read and pack documents until exactly `rows` tokens are kept; the last segment ends there.

        Args:
            partial: where the documents end before, pack what there is, if any token of it is kept.

        Space at the end of a sequence for fewer than MIN_SEGMENT tokens stays padding, unless the document is
        that short: the first tokens of a segment have too little context.

        Returns:
            ids_NS, segment_NS, position_NS, keep_NS, document_NS as in `TokenChunk`; None: the documents
            ended before.
        """
        overhead = len(self.prefix) + len(self.suffix)
        segments: list[tuple[int, int, int, np.ndarray, np.ndarray]] = []
        sequence, used, left = 0, 0, self.rows
        while left:
            current = reader.rest()
            if current is None:
                if not partial or left == self.rows:
                    return None
                break
            number, ids, keep = current
            room = self.context - used - overhead
            if used and (not self.shared or room < min(MIN_SEGMENT, len(ids))):
                sequence, used = sequence + 1, 0
                continue
            keep = keep[:room]
            if np.count_nonzero(keep) >= left:
                keep = keep[: np.flatnonzero(keep)[left - 1] + 1]
            ids = ids[: len(keep)]
            segments.append((sequence, used, number, ids, keep))
            reader.advance(len(ids))
            used += overhead + len(ids)
            left -= int(np.count_nonzero(keep))
        return self._lay_out(segments, sequence + 1)

    def _lay_out(
        self, segments: list[tuple[int, int, int, np.ndarray, np.ndarray]], sequences: int
    ) -> dict[str, Tensor]:
        overhead = len(self.prefix) + len(self.suffix)
        longest = max(begin + overhead + len(ids) for _, begin, _, ids, _ in segments)
        shape = (sequences, self.context if self.shared else longest)
        out = {name: np.zeros(shape, np.int64) for name in ("ids_NS", "segment_NS", "position_NS")}
        out["document_NS"] = np.full(shape, -1, np.int64)
        out["keep_NS"] = np.zeros(shape, bool)
        positions = np.arange(shape[1])
        before, within = -1, 0
        for sequence, begin, number, ids, keep in segments:
            within = within + 1 if sequence == before else 1
            before = sequence
            body = begin + len(self.prefix)
            tail = body + len(ids)
            end = tail + len(self.suffix)
            out["ids_NS"][sequence, begin:body] = self.prefix
            out["ids_NS"][sequence, body:tail] = ids
            out["ids_NS"][sequence, tail:end] = self.suffix
            out["segment_NS"][sequence, begin:end] = within
            out["position_NS"][sequence, begin:end] = positions[: end - begin]
            out["document_NS"][sequence, begin:end] = number
            out["keep_NS"][sequence, body:tail] = keep
        return {name: torch.from_numpy(array) for name, array in out.items()}
