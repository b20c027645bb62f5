"""A GPU that is not there: tensors that say they are on "cuda", with their numbers on the host.

Everything runs, backward passes and updates included, and gives the host's numbers. Inside a `FakeCuda`
operations that mix tensors of the host with those of the GPU fail, as torch makes them fail, and what a GPU
would wait for is counted, with the line of sae_dist that asked for it:

copies   host to device that block the host: all but `non_blocking` ones from pinned memory
reads    of numbers, or of shapes that depend on numbers, by the host

It is not a proof for what runs on a GPU only: Triton's programs, NCCL, the order of streams.

`python -m tests.helpers.fake_steps` prints mismatches, copies and reads of a step of each kind.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.helpers.fake_device import CUDA, HOST, STATE, Counts, Event, OnDevice, Stream, pinned, run


class Generator(torch.Generator):
    """A generator of the fake GPU, whose numbers are the host's."""

    def __new__(cls, device=None):
        return super().__new__(cls, HOST)


class FakeCuda(TorchDispatchMode):
    """A fake GPU for this thread; for threads that open a stream, as those of the transport do, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


@contextmanager
def fake_cuda(**changes: Any) -> Iterator[Counts]:
    """Provide a fake GPU, and count what happens on it.

    Args:
        changes: functions of torch.cuda to replace otherwise.
    """

    @contextmanager
    def stream(which):
        if which is None or threading.current_thread() is threading.main_thread():
            yield
        else:
            with FakeCuda():
                yield

    plain = {
        "_lazy_init": lambda: None,
        "Stream": Stream,
        "Event": Event,
        "stream": stream,
        "current_stream": lambda device=None: Stream(),
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "device_count": lambda: 1,
        "max_memory_allocated": lambda device=None: 0,
    }
    before = STATE.counts
    counts = STATE.counts = Counts()
    with ExitStack() as stack:
        for name, value in (plain | changes).items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(mock.patch.object(torch, name, moving(getattr(torch, name))))
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        # In threads of their own, too, that know nothing of this one's mode.
        pin = mock.patch.object(torch.Tensor, "pin_memory", lambda tensor: pinned(tensor.clone()))
        stack.enter_context(pin)
        stack.enter_context(FakeCuda())
        try:
            yield counts
        finally:
            STATE.counts = before
            STATE.pinned.clear()


def moving(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """Return torch.tensor, which dispatch modes do not see, such that they see its copy to the GPU."""

    def made(data, dtype=None, device=None, **more):
        if device is None or torch.device(device).type == "cpu":
            return make(data, dtype=dtype, device=device, **more)
        if isinstance(data, torch.Tensor):
            return data.to(CUDA, dtype or data.dtype)
        return make(data, dtype=dtype, **more).to(CUDA)

    return made


@contextmanager
def counting() -> Iterator[Counts]:
    """Count a stretch of what happens on the fake GPU by itself."""
    before, STATE.counts = STATE.counts, Counts()
    try:
        yield STATE.counts
    finally:
        STATE.counts = before


def on_device(module: Callable[..., Any]) -> None:
    """Move a module's parameters and buffers to the fake GPU, in place."""
    for part in module.modules():
        for found in (part._parameters, part._buffers):
            for name, tensor in found.items():
                if tensor is not None:
                    moved = OnDevice(tensor.detach())
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    found[name] = torch.nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
