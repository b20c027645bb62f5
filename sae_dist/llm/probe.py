"""A forward without weights: how wide the hooks' tensors are, and whether documents can share a sequence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line
from sae_dist.llm.architecture import carries_state, reader, without_cache
from sae_dist.llm.cut import is_layer, layers_of
from sae_dist.llm.hooks import Stop, attach
from sae_dist.llm.inputs import model_inputs

PROBE_TOKENS = 5


def probe(
    cfg: LlmConfig, model: Any, hooks: dict[str, str], text: Any, *, causal: bool
) -> tuple[dict[str, int], str | None]:
    """Measure the width of each hook's tensor by a forward on the meta device.

    Args:
        model: the base model, on the meta device.
        hooks: resolved, by their keys in the config.
        text: the config of the part that reads text.

    Returns:
        {key in the config: width}, in the order in which a forward reaches the hooks; and why each document
        needs a sequence of its own, None: several can share one.

    Raises:
        ConfigError: a hook is not reached, or what passes there is not one vector per token; the model runs
            neither on packed documents nor on single ones; or not as `llm.packed` asks.
    """
    without_cache(model)
    why = "is asked to, by llm.packed=false" if cfg.packed is False else carries_state(model, text)
    place = layers_of(hooks.values())
    given = cfg.name, model, hooks, text, causal
    if why is None:
        widths, error = _tried(*given, packed=True)
        if widths:
            return widths, None
        why = f"takes no mask of packed documents ({error})"
    if cfg.packed:
        raise ConfigError(f"llm.packed=true: {cfg.name} {why}; leave llm.packed out")
    widths, error = _tried(*given, packed=False)
    width = getattr(text, "hidden_size", None)
    if not widths and width and all(place is not None and is_layer(hook, place) for hook in hooks.values()):
        # It computes with values, which are not there. What is captured is compared when weights are loaded.
        return dict.fromkeys(hooks, width), why
    if not widths:
        raise ConfigError(f"llm.name={cfg.name} does not run on token ids alone ({error}); use another model")
    return widths, why


def _tried(
    name: str, model: Any, hooks: dict[str, str], text: Any, causal: bool, *, packed: bool
) -> tuple[dict[str, int], str]:
    """Return the widths, or none of them and the reason why the forward failed."""
    said = ""
    # Experts of mixture models run without values in bfloat16 alone, some other models in float32 alone.
    for dtype in (torch.bfloat16, torch.float32):
        try:
            # transformers reads masks that it makes, but no fake tensors.
            with nullcontext() if packed else _fake():
                same = packed and dtype is model.dtype
                with torch.device("meta") if packed else nullcontext():
                    one = model if same else type(model)._from_config(model.config, dtype=dtype)
                return _widths(name, one, hooks, text, causal=causal, packed=packed), ""
        except ConfigError:
            raise
        # Models raise anything when they are given a mask that they do not know.
        except Exception as error:
            said = said or first_line(error)
    return {}, said


@contextmanager
def _fake() -> Iterator[None]:
    """Make tensors without values, of which none can be read; failures are not logged."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    log.disabled = True
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.disabled = False


def _widths(
    name: str, model: Any, hooks: dict[str, str], text: Any, *, causal: bool, packed: bool
) -> dict[str, int]:
    shapes: dict[str, torch.Size] = {}

    def see(x: Tensor, key: str) -> Tensor:
        if not x.is_floating_point():
            raise ConfigError(f"{key}={hooks[key]} passes whole numbers; choose a module with activations")
        shapes.setdefault(key, x.shape)
        if len(shapes) == len(hooks):
            raise Stop
        return x

    handles = [attach(model, hook, partial(see, key=key), key) for key, hook in hooks.items()]
    try:
        with torch.no_grad():
            reader(model)(**_inputs(reader(model), text, causal=causal, packed=packed))
    except Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for key, hook in hooks.items():
        if key not in shapes:
            raise ConfigError(f"{key}={hook} is not reached when llm.name={name} runs; choose another module")
        if shapes[key][:-1] not in ((1, PROBE_TOKENS), (PROBE_TOKENS,)):
            raise ConfigError(
                f"{key}={hook} passes {list(shapes[key])} for {PROBE_TOKENS} tokens; "
                "choose a module with one vector per token"
            )
    return {key: shape[-1] for key, shape in shapes.items()}


def _inputs(model: nn.Module, text: Any, *, causal: bool, packed: bool) -> dict[str, Any]:
    weights = next(model.parameters())
    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device=weights.device)
    if not packed:
        return {"input_ids": ids}
    return model_inputs(
        ids, ids + 1, ids, model, text, first_position=0, causal=causal, packed=True, dtype=weights.dtype
    )
