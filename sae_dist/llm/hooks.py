"""Hooks on one module: read, or replace, the tensor that goes into it or comes out of it."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_dist.core.errors import ConfigError


class Stop(Exception):
    """A signal that ends a forward at the hook: what follows is not needed."""


def attach(base: nn.Module, hook: str, act: Callable[[Tensor], Tensor], key: str = "hook") -> RemovableHandle:
    """Call `act` on the hook's tensor in each forward; what it returns replaces the tensor.

    Args:
        key: the hook's key in the config, for messages.

    Raises (in the forward):
        ConfigError: what passes the hook holds no tensor.
    """
    path, direction = hook.split(":")
    module = base.get_submodule(path)
    name = f"{key}={hook}"
    if direction == "out":
        return module.register_forward_hook(
            lambda _module, _args, output: (
                act(output) if isinstance(output, Tensor) else _apply(output, act, name)
            )
        )
    return module.register_forward_pre_hook(
        lambda _module, args, kwargs: _apply_to_inputs(args, kwargs, act, name), with_kwargs=True
    )


def per_token(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return a hook's tensor as [N, S, D]; routers of mixture models pass one without the batch's axis.

    Args:
        shape: N and S, of the token ids.

    Raises:
        ConfigError: it has not one vector per token; some models pad the sequences inside.
    """
    if x.shape[:-1] not in (tuple(shape), (shape[0] * shape[1],)):
        raise ConfigError(f"a hook passes {list(x.shape)} for {list(shape)} tokens; choose another module")
    return x.view(*shape, -1)


def _apply(output: Any, act: Callable[[Tensor], Tensor], name: str) -> Any:
    """Apply `act` to a module's output that is a tuple or list whose first element is a tensor."""
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return type(output)([act(output[0]), *output[1:]])
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
    raise ConfigError(f"{name}: the module receives no tensor; choose another module")
