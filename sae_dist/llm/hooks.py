"""Reads, or replaces, the tensor that goes into or comes out of one module."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_dist.core.errors import ConfigError


class Stop(Exception):
    """Ends a forward at the hook: what comes after is not needed."""


def attach(base: nn.Module, hook: str, act: Callable[[Tensor], Tensor], key: str = "hook") -> RemovableHandle:
    """Have `act` see the hook's tensor in each forward; what it returns goes on in its place.

    Args:
        key: what the config calls this hook, for messages.

    Raises (in the forward):
        ConfigError: what passes the hook holds no tensor.
    """
    path, direction = hook.split(":")
    module = base.get_submodule(path)
    name = f"{key}={hook}"
    if direction == "out":
        return module.register_forward_hook(lambda _module, _args, output: _apply(output, act, name))
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: _apply_to_inputs(args, kwargs, act, name), with_kwargs=True
    )


def _apply(output: Any, act: Callable[[Tensor], Tensor], name: str) -> Any:
    """Modules return a tensor, or a tuple that begins with it."""
    if isinstance(output, Tensor):
        return act(output)
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return (act(output[0]), *output[1:])
    raise ConfigError(
        f"{name}: the module returns {type(output).__name__}, not a tensor; choose another module"
    )


def _apply_to_inputs(
    args: tuple[Any, ...], kwargs: dict[str, Any], act: Callable[[Tensor], Tensor], name: str
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if args and isinstance(args[0], Tensor):
        return (act(args[0]), *args[1:]), kwargs
    if isinstance(kwargs.get("hidden_states"), Tensor):
        return args, kwargs | {"hidden_states": act(kwargs["hidden_states"])}
    raise ConfigError(f"{name}: the module is not given a tensor; choose another module")
