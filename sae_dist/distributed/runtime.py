"""The process group of a run: join it, leave it; the request to stop."""

import os
import signal
import time
from datetime import timedelta
from types import FrameType

import torch
import torch.distributed as dist

from sae_dist.core.errors import ConfigError
from sae_dist.core.place import Place
from sae_dist.core.process import pause
from sae_dist.distributed.collectives import Axis
from sae_dist.distributed.control import Control, close_all
from sae_dist.distributed.network import choose_interface, store_of

LEAVE_WITHIN_S = 60.0
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables of torch that configure its allocator; the second is the older name."""


def start(where: Place, device: str, timeout_s: float) -> torch.device:
    """Join the process group (gloo on CPU; on CUDA also NCCL) and return this rank's device.

    A single process gets a group of one, so that the same code runs at every world size.

    Raises:
        ConfigError: two processes of this machine would share a GPU.
    """
    timeout = timedelta(seconds=timeout_s)
    backend, index = "gloo", 0
    if device == "cuda":
        backend, index = "cpu:gloo,cuda:nccl", gpu_of(where, torch.cuda.device_count())
        if not any(name in os.environ for name in ALLOCATOR):
            # Tensors whose size differs from step to step otherwise leave holes that nothing fits.
            os.environ[ALLOCATOR[0]] = "expandable_segments:True"
        torch.cuda.set_device(index)
    store = dist.HashStore() if where.world == 1 else store_of(where, timeout_s)
    choose_interface(where)
    dist.init_process_group(backend, store=store, rank=where.rank, world_size=where.world, timeout=timeout)
    return torch.device(device, index) if device == "cuda" else torch.device("cpu")


def gpu_of(where: Place, found: int) -> int:
    """Return the number of this process's GPU, of those that it sees.

    A Slurm step may show each task only its own; so one that sees a single GPU has that.

    Raises:
        ConfigError: there are fewer than processes on this machine. NCCL may hang where two share one.
    """
    if where.local_world > found > 1:
        raise ConfigError(
            f"device=cuda: {where.local_world} processes on this machine need a GPU each, and there are "
            f"{found}; start at most {found} here, or use device=cpu"
        )
    return where.local_rank % max(found, 1)


def everyone(name: str) -> Axis:
    """Return all ranks of the process group as one axis."""
    world: dist.ProcessGroup | None = dist.group.WORLD
    assert world is not None, "started"
    return Axis(name, world)


def finish() -> None:
    """Leave the process group once every rank is ready to: rank 0 may host the store of all.

    Raises:
        TransportError: the store is gone before that.
    """
    if not dist.is_initialized():
        return
    control, world = Control(LEAVE_WITHIN_S), dist.get_world_size()
    left = control.add("left", 1)
    until = time.monotonic() + LEAVE_WITHIN_S
    while dist.get_rank() == 0 and left < world and time.monotonic() < until:
        pause(0.01)
        left = control.add("left", 0)
    close_all()
    dist.destroy_process_group()


class StopRequest:
    """A flag that SIGTERM, SIGINT or SIGUSR2 sets to ask this process to stop.

    The ranks agree on it at the end of a step; the signal handler does nothing else.
    """

    def __init__(self) -> None:
        self.wanted = False
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
            signal.signal(number, self._remember)

    def _remember(self, _number: int, _frame: FrameType | None) -> None:
        self.wanted = True
