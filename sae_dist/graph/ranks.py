"""The ranks that share the rows of a graph: those that a launcher started, or this process alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from sae_dist.core.errors import SaeDistError, Told
from sae_dist.core.place import launched, place
from sae_dist.distributed import runtime
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.control import Control

TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Ranks:
    """The processes that share the work, and this one's place among them.

    Attributes:
        axis: all ranks; None: there is one.
    """

    device: torch.device
    axis: Axis | None = None

    @property
    def leads(self) -> bool:
        """The answer to: does this rank check, write and print?"""
        return self.axis is None or self.axis.rank == 0


@contextmanager
def together(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun or a Slurm step started, for the body.

    Raises:
        ConfigError: two processes of a machine would share a GPU.
        TransportError: a rank is gone.
        Told: this is not the first rank, which says why all end.
    """
    if not launched():
        yield Ranks(torch.device(device))
        return
    where = place()
    own = runtime.start(where, device, TIMEOUT_S)
    control = Control(TIMEOUT_S, "graph")
    control.start_beating(where.rank)
    try:
        yield Ranks(own, runtime.everyone("graph"))
    except Exception as error:
        cause = control.tell(where.rank, error)
        if where.rank and isinstance(error, SaeDistError):
            raise Told(str(cause)) from error
        if cause is error:
            raise
        raise cause from error
    control.ended.set()
    runtime.finish()
