"""The factors of a model that depend on its input, recorded in one forward and constant in others.

Attention patterns are results of a softmax, gates of a sigmoid; norms multiply by one number per row. With
all held constant, what remains of a model around its MLPs is linear, or else that is seen. Nothing here knows
an architecture: a softmax is seen when it is called, and a norm is known by what it does with its rows.

Letters: as core.types.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sae_dist.core.errors import ConfigError

SOFTMAX = frozenset((torch.softmax, Tensor.softmax, nn.functional.softmax, torch.special.softmax))
GATES = frozenset(
    (torch.sigmoid, Tensor.sigmoid, nn.functional.sigmoid, torch.special.expit, nn.functional.softplus)
)
"""What some models multiply attention's output by, as a function of the input."""
WAYS = ("_attn_implementation_internal", "_experts_implementation_internal")
"""Where a config of transformers says how attention, and a mixture's experts, are computed."""
APART = 1e-4
"""How far a norm's output may be from scale * weight * row + bias, relative to the output: rounding alone."""


@dataclass(frozen=True)
class Scaled:
    """A norm at recorded rows: output = scale * weight * row + rest, the row less its mean if `centred`.

    Attributes:
        scale: one number per row.
        rest: its bias, and what it rounds away.
    """

    centred: bool
    weight: Tensor | float
    scale: Tensor
    rest: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Return the output at other rows, with the recorded rows' scale."""
        found = self.weight * _centred(x, self.centred)
        return repeated(self.scale, found.shape) * found + repeated(self.rest, found.shape)


def scaled(module: nn.Module, x: Tensor, y: Tensor) -> Scaled | None:
    """Return what a norm did with rows; None: it is no norm that multiplies each row by a number."""
    if x.shape != y.shape or not x.is_floating_point():
        return None
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    base = y - bias if isinstance(bias, Tensor) else y
    weights = (weight, 1 + weight) if isinstance(weight, Tensor) else (1.0,)
    best: tuple[float, Scaled | None] = (APART, None)
    for centred in (False, True):
        for each in weights:
            try:
                wide = each * _centred(x, centred)
            except RuntimeError:  # its weight is of another shape than its rows
                continue
            if wide.shape != y.shape:
                continue
            size = wide.square().sum(-1, keepdim=True)
            scale = (base * wide).sum(-1, keepdim=True) / size.where(size > 0, 1.0)
            off = (base - scale * wide).norm() / base.norm().clamp(min=torch.finfo(y.dtype).tiny)
            if float(off) < best[0]:
                best = float(off), Scaled(centred, each, scale, y - scale * wide)
    return best[1]


def _centred(x: Tensor, centred: bool) -> Tensor:
    return x - x.mean(-1, keepdim=True) if centred else x


def repeated(recorded: Tensor, shape: torch.Size | tuple[int, ...]) -> Tensor:
    """Return what was recorded of one sequence for several copies of it, along the first dimension.

    Raises:
        ConfigError: the copies have not so many rows.
    """
    if recorded.shape[0] == shape[0] or recorded.shape[0] == 1:
        return recorded
    times, rest = divmod(shape[0], recorded.shape[0])
    if rest:
        raise ConfigError(
            f"the model computes {list(shape)} in place of copies of {list(recorded.shape)}: its batches are "
            "no sequences side by side, and no graph can be drawn of it"
        )
    return recorded.repeat(times, *[1] * (recorded.dim() - 1))


@dataclass
class Frozen:
    """The patterns and norms of one forward.

    Attributes:
        patterns: results of every softmax and gate, in the order of the calls.
        gates: how many of them are gates.
        replaced: modules whose output is replaced: what happens inside does not count.
        norms: by module, in the order of its calls.
        unknown: modules that have the name of a norm and do something else, with their class.
    """

    model: nn.Module
    replaced: Sequence[str] = ()
    patterns: list[Tensor] = field(default_factory=list)
    gates: int = 0
    norms: dict[str, list[Scaled]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the forward in the body."""

        def note(name: str, module: nn.Module, x: Tensor, y: Any) -> Any:
            found = scaled(module, x.detach(), y.detach()) if isinstance(y, Tensor) else None
            if found is None:
                self.unknown[name] = type(module).__name__
            else:
                self.norms.setdefault(name, []).append(found)
            return y

        with self._bypassing() as inside, self._on_norms(note, inside), _Record(self, inside):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Let forwards of copies of the recorded sequence, in the body, use its patterns and norms."""
        calls = {name: iter(each) for name, each in self.norms.items()}

        def replace(name: str, _module: nn.Module, x: Tensor, y: Any) -> Any:
            return next(calls[name])(x) if name in calls else y

        with self._bypassing() as inside, self._on_norms(replace, inside), _Replay(self.patterns, inside):
            yield

    @contextmanager
    def _bypassing(self) -> Iterator[list[str]]:
        """Let attention be explicit, and yield a list that holds the replaced modules that are running."""
        inside: list[str] = []

        def begin(module: nn.Module, _args: Any) -> None:
            inside.append(type(module).__name__)

        def end(_module: nn.Module, _args: Any, _output: Any) -> None:
            inside.pop()

        with explicit_attention(self.model), ExitStack() as stack:
            for name in self.replaced:
                module = self.model.get_submodule(name)
                stack.callback(module.register_forward_pre_hook(begin).remove)
                stack.callback(module.register_forward_hook(end).remove)
            yield inside

    @contextmanager
    def _on_norms(
        self, act: Callable[[str, nn.Module, Tensor, Any], Any], inside: list[str]
    ) -> Iterator[None]:
        def hook(name: str) -> Callable[..., Any]:
            def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Any) -> Any:
                x = args[0] if args else next(iter(kwargs.values()), None)
                return act(name, module, x, y) if isinstance(x, Tensor) and not inside else y

            return called

        with ExitStack() as stack:
            for name, module in self.model.named_modules():
                if "norm" in type(module).__name__.lower() and name not in self.unknown:
                    handle = module.register_forward_hook(hook(name), with_kwargs=True)
                    stack.callback(handle.remove)
            yield


class _Record(TorchFunctionMode):
    """A look at every softmax and gate."""

    def __init__(self, found: Frozen, inside: list[str]):
        super().__init__()
        self._found, self._inside = found, inside

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if func in SOFTMAX | GATES and not self._inside:
            self._found.patterns.append(found.detach().clone())
            self._found.gates += func in GATES
        return found


class _Replay(TorchFunctionMode):
    """The results that were recorded, in place of every softmax and gate."""

    def __init__(self, recorded: list[Tensor], inside: list[str]):
        super().__init__()
        self._next, self._inside = iter(recorded), inside

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func not in SOFTMAX | GATES or self._inside:
            return func(*args, **given)
        like = args[0] if args else given["input"]
        recorded = next(self._next, None)
        if recorded is None or recorded.shape[1:] != like.shape[1:]:
            raise ConfigError(
                "the model calls other softmaxes for the same text again; no graph can be drawn of it"
            )
        pattern = repeated(recorded, like.shape)
        return pattern.expand(like.shape) if pattern.shape != like.shape else pattern


@contextmanager
def explicit_attention(model: nn.Module) -> Iterator[None]:
    """Let a model compute its attention patterns by a softmax of its own in the body.

    Experts of a mixture are computed one by one, too: the kernel for all at once knows no float64.
    """
    found = {id(each): each for module in model.modules() if (each := _config(module)) is not None}
    before = [
        (each, key, getattr(each, key)) for each in found.values() for key in WAYS if hasattr(each, key)
    ]
    try:
        for each, key, _ in before:
            setattr(each, key, "eager")
        yield
    finally:
        for each, key, value in before:
            setattr(each, key, value)


def _config(module: nn.Module) -> Any:
    return getattr(module, "config", None)
