"""The collectives of this project. Each waits for its result and returns it.

At size 1 every operation is the identity and moves nothing. `Axis.bytes` counts the bytes that this
rank received, by operation, so that tests can compare the communication with its formula.
"""

import json
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sae_dist.core.errors import TransportError
from sae_dist.core.types import Clock, untimed

# Renamed in torch 2.13, which warns of the names that 2.11 has.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


class Axis:
    """The ranks along one axis of the mesh, as seen from this rank.

    Args:
        clock: times each operation as "exchange": waiting for the other ranks, and moving bytes.
    """

    def __init__(self, name: str, group: dist.ProcessGroup, clock: Clock = untimed):
        self.name = name
        self.group = group
        self.clock = clock
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.bytes: Counter[str] = Counter()

    def gather_rows(self, part: Tensor) -> Tensor:
        """Gather [n, ...] of each rank into [size * n, ...] on every rank, in rank order. No gradient."""
        if self.size == 1:
            return part
        whole = part.new_empty(self.size * part.shape[0], *part.shape[1:])
        with self.clock("exchange"):
            _all_gather(whole, part.contiguous(), group=self.group)
        self._count("gather_rows", part, self.size - 1)
        return whole

    def gather_ragged(self, part: Tensor) -> Tensor:
        """Gather [n] of each rank, n its own, into one vector on every rank, in rank order. No gradient."""
        if self.size == 1:
            return part
        counts = self.gather_rows(torch.tensor([len(part)], device=part.device)).tolist()
        padded = part.new_zeros(max(counts))
        padded[: len(part)] = part
        whole = self.gather_rows(padded).view(self.size, -1)
        return torch.cat([row[:count] for row, count in zip(whole, counts, strict=True)])

    def gather_json(self, own: Any) -> list[Any]:
        """Gather a value of each rank, as JSON, on every rank, in rank order. It travels on the host.

        torch's collectives of objects unpickle what arrives: whoever reached a socket could run code here.

        Raises:
            TransportError: what arrived is no JSON of so many ranks.
        """
        line = bytearray(json.dumps(own).encode() + b"\n")
        whole = self.gather_ragged(torch.frombuffer(line, dtype=torch.uint8)).numpy().tobytes()
        try:
            found = [json.loads(each) for each in whole.splitlines()]
        except ValueError:
            found = []
        if len(found) != self.size:
            raise TransportError(f"{self.name}: {len(whole)} bytes are no JSON of {self.size} ranks")
        return found

    def exchange_rows(self, rows: Tensor) -> Tensor:
        """Send slice i of dim 0 to rank i (all-to-all); return the slices received, in rank order."""
        if self.size == 1:
            return rows
        if rows.dtype == torch.int16:  # which neither gloo nor NCCL moves as such
            return self.exchange_rows(rows.contiguous().view(torch.uint8)).view(torch.int16)
        received = torch.empty_like(rows)
        with self.clock("exchange"):
            dist.all_to_all_single(received, rows.contiguous(), group=self.group)
        self._count("exchange_rows", rows, (self.size - 1) / self.size)
        return received

    def scatter_sum_rows(self, partial: Tensor) -> Tensor:
        """Sum [size * n, ...] over the ranks; return this rank's [n, ...].

        Reduce-scatter forward, all-gather backward.
        """
        return partial if self.size == 1 else _ScatterSumRows.apply(partial, self)

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over the ranks (all-reduce), in place. No gradient."""
        return self._all_reduce("sum", value, dist.ReduceOp.SUM)

    def max(self, value: Tensor) -> Tensor:
        """Take the maximum of a tensor over the ranks (all-reduce), in place. No gradient."""
        return self._all_reduce("max", value, dist.ReduceOp.MAX)

    def _all_reduce(self, name: str, value: Tensor, op: Any) -> Tensor:
        if self.size > 1:
            with self.clock("exchange"):
                dist.all_reduce(value, op, group=self.group)
            self._count(name, value, 2 * (self.size - 1) / self.size)
        return value

    def _count(self, operation: str, value: Tensor, factor: float) -> None:
        self.bytes[operation] += round(value.numel() * value.element_size() * factor)


class _ScatterSumRows(torch.autograd.Function):
    """The autograd function of `scatter_sum_rows`: reduce-scatter forward, all-gather backward."""

    @staticmethod
    def forward(ctx: Any, partial: Tensor, axis: Axis) -> Tensor:
        ctx.axis = axis
        part = partial.new_empty(partial.shape[0] // axis.size, *partial.shape[1:])
        with axis.clock("exchange"):
            _reduce_scatter(part, partial.contiguous(), group=axis.group)
        axis._count("scatter_sum_rows", part, axis.size - 1)
        return part

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.axis.gather_rows(grad), None
