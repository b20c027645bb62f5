"""Tensors of the GPU of `fake_cuda`: they say that they are on "cuda", and have their numbers on the host."""

import sys
import time
from collections import Counter
from types import FrameType, SimpleNamespace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only

CUDA = torch.device("cuda", 0)
HOST = torch.device("cpu")
READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount")
INDEXED = ("index", "index_put", "index_put_")


class OnDevice(torch.Tensor):
    """A tensor that says it is on the GPU; `inner` has its numbers.

    For torch itself its device is "meta": a build without CUDA has no backward pass for "cuda".
    """

    inner: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="meta",
        )
        made.inner = inner
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def to(self, *args, copy=False, **kwargs):
        """Convert; the GPU to itself copies nothing."""
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None and device.type == "cpu":
            return torch.ops.aten._to_copy(self, device=HOST, dtype=dtype, non_blocking=non_blocking)
        if (dtype is None or dtype == self.dtype) and not copy:
            return self
        return torch.ops.aten._to_copy(self, dtype=dtype or self.dtype)

    def cpu(self):
        return self.to("cpu")

    def tolist(self):
        note(counted().reads, "tolist")
        return self.inner.tolist()

    def new_tensor(self, data, dtype=None, device=None):
        return torch.tensor(data, dtype=dtype or self.dtype, device=CUDA if device is None else device)

    def record_stream(self, stream):
        assert isinstance(stream, Stream)
        counted().recorded += 1

    def __repr__(self):
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Stream:
    """A stream of the fake GPU, which is always done."""

    def __init__(self, device=None, **_):
        self.device = CUDA

    def synchronize(self):
        counted().waits += 1

    def wait_event(self, event): ...

    def wait_stream(self, stream): ...

    def record_event(self, event=None):
        return event or Event()

    def query(self):
        return True


class Event:
    """An event that has passed once it is recorded, unless `pending` asks to be left as it is."""

    def __init__(self, **_):
        self.moment = 0.0

    def record(self, stream=None):
        self.moment = time.perf_counter()

    def synchronize(self): ...

    def wait(self, stream=None): ...

    def query(self):
        return True

    def elapsed_time(self, last):
        return 1000 * (last.moment - self.moment)


class Counts:
    """The numbers of one stretch of the program.

    Attributes:
        copies, reads: by the line that asked for them.
        recorded: tensors whose memory a second stream was told of.
    """

    def __init__(self):
        self.copies: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.recorded = self.waits = 0


STATE = SimpleNamespace(counts=None, pinned={})


def counted() -> Counts:
    return STATE.counts or Counts()


def note(found: Counter, what: str) -> None:
    found[f"{what} {place()}"] += 1


def place() -> str:
    """Return the innermost line of sae_dist on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/sae_dist/" in name:
            return f"{name.rpartition('/sae_dist/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


def is_pinned(tensor: torch.Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in STATE.pinned


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    storage = tensor.untyped_storage()
    STATE.pinned[storage.data_ptr()] = storage  # kept: another tensor would get its address
    return tensor


def run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the host, for the device that it was for."""
    name = func.overloadpacket.__name__
    tensors = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, torch.Tensor)]
    fakes = [each for each in tensors if isinstance(each, OnDevice)]
    asked = kwargs.get("device")
    on_device = bool(fakes) if asked is None else torch.device(asked).type != "cpu"
    kwargs = kwargs | ({"device": HOST} if asked is not None else {})
    if name == "is_pinned":
        return is_pinned(args[0])
    if name == "_pin_memory":
        return pinned(args[0].clone())
    pin = bool(kwargs.pop("pin_memory", False))
    look(name, args, kwargs, tensors, fakes, on_device)
    inner = {id(fake.inner): fake for fake in fakes}
    args, kwargs = tree_map_only(OnDevice, lambda fake: fake.inner, (args, kwargs))
    found = func(*args, **kwargs)
    if name == "_to_copy" and not on_device and fakes and found.data_ptr() == args[0].data_ptr():
        found = found.clone()
    if pin:
        return pinned(found)
    if not on_device:
        return found
    return tree_map_only(
        torch.Tensor, lambda each: inner[id(each)] if id(each) in inner else OnDevice(each), found
    )


def look(name: str, args: Any, kwargs: Any, tensors: list, fakes: list, on_device: bool) -> None:
    """Count what the host would wait for; refuse what torch refuses.

    Raises:
        RuntimeError: tensors of the host and of the GPU meet.
    """
    counts = counted()
    if name in ("_to_copy", "copy_"):
        target, source = (args[0], args[1]) if name == "copy_" else (None, args[0])
        onto = isinstance(target, OnDevice) if name == "copy_" else on_device
        free = kwargs.get("non_blocking", False) or name == "copy_" and len(args) > 2 and args[2]
        if onto and not isinstance(source, OnDevice) and not (free and is_pinned(source)):
            note(counts.copies, "copy")
        if not onto and isinstance(source, OnDevice) and not free:
            note(counts.reads, name)
        return
    if not fakes:
        return
    indices = [each for each in args[1] if each is not None] if name in INDEXED else []
    for each in indices:
        if not isinstance(each, OnDevice):
            note(counts.copies, "index")
        if each.dtype == torch.bool:
            note(counts.reads, "mask")
    others = [each for each in tensors if not isinstance(each, OnDevice) and each.dim()]
    if wrong := [each for each in others if not any(each is index for index in indices)]:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got cuda:0 and cpu "
            f"{tuple(wrong[0].shape)} at {place()}"
        )
    if name in READS or name == "repeat_interleave" and kwargs.get("output_size") is None:
        note(counts.reads, name)
