"""Synthetic activations, drawn from known features on the rank that needs them, without end.

Letters: as core.types; P pairs of a row and a feature that fires in it.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from sae_dist.core.types import ActivationChunk, Position
from sae_dist.transport.ground_truth import Draws, GroundTruth

TRAINING, HELD_OUT = 4, 5
"""Last integers of the random keys of rows."""


class SyntheticChunkSource:
    """A source whose chunks depend on (seed, lane, number in the lane) alone: any chunk is reached directly.

    Args:
        lanes, rows: lanes of the run and rows per chunk R.
        held_out: rows of another random stream, for evaluation, through lane 0; they never end either.
    """

    def __init__(
        self, truth: GroundTruth, *, lanes: int, rows: int, seed: int, held_out: bool, dtype: torch.dtype
    ):
        self.truth, self.rows, self.seed, self.dtype = truth, rows, seed, dtype
        self.lanes = 1 if held_out else lanes
        self.purpose = HELD_OUT if held_out else TRAINING
        self.width = truth.width

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of a lane, as `ChunkSource.open`. They never end."""
        for index in itertools.count(start["chunk"] if start else 0):
            yield self._make(lane, index)

    def fires(self, lane: int, index: int) -> Tensor:
        """Return which true features fire in the rows of a chunk: bool [R, G]."""
        return torch.from_numpy(self.truth.fires(self.rows, self._draws(lane, index)))

    def _draws(self, lane: int, index: int) -> Draws:
        return Draws(self.seed, lane, index, self.purpose)

    def _make(self, lane: int, index: int) -> ActivationChunk:
        draws = self._draws(lane, index)
        fires_RG = self.truth.fires(self.rows, draws)
        feature_P = torch.from_numpy(np.nonzero(fires_RG)[1])
        magnitude_P = torch.from_numpy(self.truth.magnitudes(len(feature_P), draws))
        ends_R = torch.from_numpy(fires_RG.sum(1).cumsum())
        rows_RD = embedding_bag(
            feature_P,
            self.truth.directions_GD,
            ends_R.roll(1).index_fill_(0, torch.tensor([0]), 0),
            mode="sum",
            per_sample_weights=magnitude_P,
        )
        if self.truth.cfg.noise:
            rows_RD += self.truth.cfg.noise * torch.from_numpy(draws.normal(self.rows, self.width))
        number = index * self.lanes + lane
        ids = torch.arange(number * self.rows, (number + 1) * self.rows)
        return ActivationChunk(number, lane, rows_RD.to(self.dtype), ids, {"chunk": index})
