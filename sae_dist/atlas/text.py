"""The text of an atlas: kept by whoever runs the model, chunk by chunk, and put in order at the end.

Letters: T tokens, R rows of a chunk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sae_dist.atlas.postings import NO_PLACE
from sae_dist.atlas.schema import (
    DOCUMENTS,
    DOCUMENTS_SCHEMA,
    KEPT,
    LEFT_OUT,
    MOST_PLACES,
    OUTLIER,
    ROW_GROUPS,
    TOKENS,
    TOKENS_SCHEMA,
    WORK,
)
from sae_dist.atlas.tables import TableWriter, write_table
from sae_dist.core.errors import DataError
from sae_dist.core.files import replacing
from sae_dist.core.types import ActivationChunk, Position, TokenChunk
from sae_dist.llm.capture import LlmChunkSource

TOKEN = np.dtype(
    [("chunk", "<u4"), ("token", "<u4"), ("document", "<i8"), ("position", "<u4"), ("state", "u1")]
)
"""A token of a lane: the number of its chunk in all lanes, and its document's number in the lane."""
TEXT = "text"
AT_OF_ROW = "at_of_row.npy"


@dataclass(frozen=True)
class Plan:
    """The order of a pass. Chunk c belongs to lane c mod lanes; window w has `window` chunks of each lane.

    Attributes:
        rows: activations of a chunk, at most.
        chunks: chunks are numbered below it.
    """

    lanes: int
    rows: int
    chunks: int
    window: int

    @property
    def windows(self) -> int:
        """The number of windows."""
        return -(-self.chunks // (self.lanes * self.window))


class Recorded:
    """A source of activation chunks that writes their tokens to disk, a file for each lane and window.

    A file is there before the last of its chunks is handed out: whoever has them all finds their text. A lane
    that is opened at a position begins with a chunk that was recorded before.

    Args:
        folder: of the atlas.
        writes: false on a rank that computes the same chunks as another, which writes them.
    """

    def __init__(self, source: LlmChunkSource, folder: Path, plan: Plan, writes: bool = True):
        self.source, self.width, self._plan, self._writes = source, source.width, plan, writes
        self._folder = folder / WORK / TEXT
        self._latest = np.empty(0, TOKEN)
        source.chose = self._remember

    def idle(self) -> None:
        """Join a round of the LLM's group; see `LlmChunkSource.idle`."""
        self.source.idle()

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane up to the plan's end, as `ChunkSource.open`."""
        plan, index = self._plan, start["chunk"] if start else 0
        chunks = self.source.open(lane, start)
        if start:
            if (again := next(chunks, None)) is None:
                return
            yield again
            index += 1
        kept: list[np.ndarray] = []
        while index * plan.lanes + lane < plan.chunks:
            chunk = next(chunks, None)
            if chunk is None:
                break
            kept.append(self._latest)
            index += 1
            if index % plan.window == 0 or index * plan.lanes + lane >= plan.chunks:
                self._write(lane, (index - 1) // plan.window, kept)
                kept = []
            yield chunk
        self._write(lane, index // plan.window, kept)

    def _remember(self, chunk: TokenChunk, chosen_R: Tensor) -> None:
        self._latest = _tokens_of(chunk, chosen_R)

    def _write(self, lane: int, window: int, kept: list[np.ndarray]) -> None:
        if not kept or not self._writes:
            return
        path = _file(self._folder, lane, window)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, synced=True) as temporary, open(temporary, "wb") as file:
            np.save(file, np.concatenate(kept))


def _tokens_of(chunk: TokenChunk, chosen_R: Tensor) -> np.ndarray:
    """Return the tokens of a chunk [T], padding left out, in the order in which it was read."""
    state_NS = torch.full(chunk.keep_NS.shape, LEFT_OUT, dtype=torch.uint8)
    kept_R = torch.full((int(chunk.keep_NS.sum()),), OUTLIER, dtype=torch.uint8)
    kept_R[chosen_R] = KEPT
    state_NS[chunk.keep_NS] = kept_R
    there_NS = chunk.segment_NS != 0
    found = np.empty(int(there_NS.sum()), TOKEN)
    found["chunk"] = chunk.number
    found["token"] = chunk.ids_NS[there_NS].numpy()
    found["document"] = chunk.document_NS[there_NS].numpy()
    found["position"] = chunk.position_NS[there_NS].numpy()
    found["state"] = state_NS[there_NS].numpy()
    return found


def _file(folder: Path, lane: int, window: int) -> Path:
    return folder / f"lane-{lane:05d}-window-{window:07d}.npy"


def assemble(folder: Path, plan: Plan) -> dict[str, int]:
    """Write the tables of tokens and documents, and the place of each row, from all that was recorded.

    Returns:
        The numbers of tokens, of those `kept`, `left_out` and `outliers`, and of documents.

    Raises:
        DataError: there is more text than places can number.
    """
    last = max((int(path.stem[-7:]) for path in (folder / WORK / TEXT).glob("lane-*.npy")), default=-1)
    rows = (last + 1) * plan.window * plan.lanes * plan.rows
    temporary = (folder / WORK / AT_OF_ROW).with_suffix(".tmp")
    # On disk: four bytes a row would make memory grow with the text.
    at_of_row = np.lib.format.open_memmap(temporary, "w+", np.uint32, (max(1, rows),))
    at_of_row[:] = NO_PLACE
    documents: list[np.ndarray] = []
    states = np.zeros(3, np.int64)
    at = count = 0
    with TableWriter(folder / TOKENS, TOKENS_SCHEMA, ROW_GROUPS["tokens"]) as writer:
        for lane in range(plan.lanes):
            before = None
            for window in range(plan.windows):
                path = _file(folder / WORK / TEXT, lane, window)
                if not path.is_file():
                    break
                tokens = np.load(path, allow_pickle=False)
                if at + len(tokens) > MOST_PLACES:
                    raise DataError(f"the text has more than {MOST_PLACES:,} tokens; lower atlas.tokens")
                begins_T = np.diff(tokens["document"], prepend=-1 if before is None else before) != 0
                document_T = count + np.cumsum(begins_T) - 1
                at_T = np.arange(at, at + len(tokens))
                _place_rows(at_of_row, tokens, at_T, plan.rows)
                columns = [at_T, tokens["token"], document_T, tokens["position"], tokens["state"]]
                arrays = [
                    pa.array(column, field.type) for column, field in zip(columns, TOKENS_SCHEMA, strict=True)
                ]
                writer.write(pa.table(arrays, schema=TOKENS_SCHEMA))
                states += np.bincount(tokens["state"], minlength=3)
                documents.append(_documents(tokens, document_T, at_T, lane))
                at, count = at + len(tokens), int(document_T[-1]) + 1
                before = tokens["document"][-1]
    _write_documents(folder, documents)
    at_of_row.flush()
    del at_of_row
    temporary.replace(folder / WORK / AT_OF_ROW)
    numbers = {"kept": KEPT, "left_out": LEFT_OUT, "outliers": OUTLIER}
    return {"tokens": at, "documents": count} | {name: int(states[n]) for name, n in numbers.items()}


def _place_rows(at_of_row: np.ndarray, tokens: np.ndarray, at_T: np.ndarray, rows: int) -> None:
    """Note the place of each kept token under its row: chunk by chunk, its number among the chunk's."""
    kept_T = tokens["state"] == KEPT
    chunk_R = tokens["chunk"][kept_T].astype(np.int64)
    begins_R = np.diff(chunk_R, prepend=-1) != 0
    first_R = np.maximum.accumulate(np.where(begins_R, np.arange(len(chunk_R)), 0))
    at_of_row[chunk_R * rows + np.arange(len(chunk_R)) - first_R] = at_T[kept_T]


DOCUMENT = np.dtype([(name, "<i8") for name in DOCUMENTS_SCHEMA.names])


def _documents(tokens: np.ndarray, document_T: np.ndarray, at_T: np.ndarray, lane: int) -> np.ndarray:
    """Return the documents of a window, those of which it has a part too."""
    number, first, length = np.unique(document_T, return_index=True, return_counts=True)
    found = np.empty(len(number), DOCUMENT)
    found["document"], found["lane"], found["number"] = number, lane, tokens["document"][first]
    found["begin"], found["tokens"] = at_T[first], length
    found["kept"] = np.add.reduceat(tokens["state"] == KEPT, first, dtype=np.int64)
    return found


def _write_documents(folder: Path, parts: list[np.ndarray]) -> None:
    every = np.concatenate([np.empty(0, DOCUMENT), *parts])
    _, first = np.unique(every["document"], return_index=True)
    found = every[first]
    for name in ("tokens", "kept"):
        found[name] = np.add.reduceat(every[name], first) if len(every) else found[name]
    arrays = [pa.array(found[field.name], field.type) for field in DOCUMENTS_SCHEMA]
    write_table(folder / DOCUMENTS, pa.table(arrays, schema=DOCUMENTS_SCHEMA), ROW_GROUPS["documents"])
