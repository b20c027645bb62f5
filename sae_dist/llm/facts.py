"""Facts of an LLM that can be known before its weights are loaded."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts
from sae_dist.llm.architecture import attention, auto_classes, sees_both_ways, text_part
from sae_dist.llm.cut import is_needed, layers_of
from sae_dist.llm.hub import loading, resolve_name
from sae_dist.llm.names import resolve_hook
from sae_dist.llm.probe import probe
from sae_dist.llm.special import has_tokenizer, special_tokens

LIMITS = ("max_position_embeddings", "max_sequence_length", "max_seq_len", "n_positions")
"""Names that models give to their limit on tokens in a sequence."""
MORE, MORE_TARGETS = "grid.hook", "grid.target_hook"
"""The keys that further hooks and their targets are named by, followed by their numbers."""


def llm_facts(
    cfg: LlmConfig,
    hook: str | None,
    target_hook: str | None = None,
    more: Sequence[tuple[str, str | None]] = (),
) -> tuple[LlmFacts, str | None]:
    """Collect the facts of the LLM in `cfg` from its config, its tokenizer and its modules without weights.

    Args:
        hook: see `names.resolve_hook`; None: the output of the middle layer.
        target_hook: the target of a transcoder, resolved like `hook`; None: an autoencoder.
        more: further hooks of a grid, each with its target; all of them have one, or none.

    Returns:
        The facts, and lines that report how hook names were translated (None: no name was).

    Raises:
        ConfigError: no such model or hook, no tokenizer, or a model that is neither causal nor an encoder.
    """
    if cfg.attn not in (None, "sdpa", "eager"):
        raise ConfigError(f"llm.attn={cfg.attn} does not support explicit 4-D masks; use sdpa or eager")
    path = resolve_name(cfg.name)
    config, model = _empty(cfg, path)
    text = text_part(config)
    base_auto, whole_auto, causal = _auto_classes(config, cfg.name, model)
    depth = getattr(text, "num_hidden_layers", 0)
    given = _by_key((hook, target_hook), more)
    read = {key: resolve_hook(each, model, depth, key) for key, each in given.items()}
    hooks = {key: resolved for key, (resolved, _) in read.items()}
    attn = attention(cfg.attn, model)
    widths, alone = probe(cfg, model.eval(), hooks, text, causal=causal)
    lines = [line for _, line in read.values() if line is not None]
    if alone is not None:
        lines.append(f"one document in a sequence, since {cfg.name} {alone}")
    facts = LlmFacts(
        name=cfg.name,
        path=path,
        hook=hooks["hook"],
        width=widths["hook"],
        causal=causal,
        context=context_of(model, text),
        vocab_size=text.vocab_size,
        target_hook=hooks.get("target_hook"),
        target_width=widths.get("target_hook"),
        target_first=target_hook is not None and _before("target_hook", "hook", widths),
        **_further(hooks, widths),
        packed=alone is None,
        attn=attn,
        auto=(base_auto, whole_auto),
        architecture=type(model).__name__,
        tp_sizes=_tp_sizes(model, text),
        **_sizes(model, config, hooks, causal),
        **special_tokens(cfg, path, causal, text.vocab_size),
    )
    if not has_tokenizer(path):
        lines.append(
            f"llm.name={cfg.name} has no tokenizer: token ids are read as they are given, and all are "
            "activations but those of tokens.exclude_ids and those with attention mask 0"
        )
    return facts, "\n".join(lines) or None


def _by_key(
    first: tuple[str | None, str | None], more: Sequence[tuple[str, str | None]]
) -> dict[str, str | None]:
    """Return hooks and their targets, where there are any, by their keys in the config."""
    named: list[tuple[str, str, tuple[str | None, str | None]]] = [("hook", "target_hook", first)]
    named += [(f"{MORE}[{n}]", f"{MORE_TARGETS}[{n}]", pair) for n, pair in enumerate(more, 1)]
    found: dict[str, str | None] = {}
    for hook, target_hook, (hook_name, target_name) in named:
        found[hook] = hook_name
        if target_name is not None:
            found[target_hook] = target_name
    return found


def _further(hooks: dict[str, str], widths: dict[str, int]) -> dict[str, Any]:
    """Return the facts `more` and `more_targets`; keys as in `_by_key`, widths in the order of a forward."""
    more = tuple((hook, widths[key]) for key, hook in hooks.items() if key.startswith(MORE))
    targets = tuple(
        (hook, widths[key], _before(key, key.replace(MORE_TARGETS, MORE), widths))
        for key, hook in hooks.items()
        if key.startswith(MORE_TARGETS)
    )
    return {"more": more, "more_targets": targets}


def _before(one: str, other: str, reached: Iterable[str]) -> bool:
    """Tell whether a key comes before another in the order in which a forward reaches their hooks."""
    order = list(reached)
    return order.index(one) < order.index(other)


def _auto_classes(config: Any, name: str, model: nn.Module) -> tuple[str, str, bool]:
    base, whole, causal = auto_classes(config, name)
    return (base, base, False) if causal and sees_both_ways(model) else (base, whole, causal)


def _sizes(model: nn.Module, config: Any, hooks: dict[str, str], causal: bool) -> dict[str, Any]:
    """Count the parameters needed up to the last hook, and those of the whole model with its head."""
    place, text = layers_of(hooks.values()), text_part(config)
    counts = [(is_needed(name, place), each.numel()) for name, each in model.named_parameters()]
    whole = sum(count for _, count in counts)
    needed = sum(count for need, count in counts if need)
    own_head = causal and not getattr(config, "tie_word_embeddings", False)
    head = text.vocab_size * text.hidden_size if own_head else 0
    return {"parameters": needed, "whole_parameters": whole + head}


def context_of(model: nn.Module, text: Any) -> int | None:
    """Return the model's limit on tokens in a sequence; None: it states none."""
    stated = [getattr(text, key, None) for key in LIMITS]
    lowest = min((each for each in stated if isinstance(each, int)), default=None)
    return None if lowest is None else lowest - position_offset(model)


def _tp_sizes(model: Any, config: Any) -> tuple[int, ...] | None:
    """List the group sizes that divide query and key heads; None: transformers has no plan for this model."""
    if not getattr(model, "tp_plan", None):
        return None
    try:
        heads = config.num_attention_heads
        shared = math.gcd(heads, getattr(config, "num_key_value_heads", None) or heads)
    # They may differ from layer to layer.
    except (AttributeError, TypeError):
        return None
    return tuple(size for size in range(2, shared + 1) if shared % size == 0)


def position_offset(model: nn.Module) -> int:
    """Return the position id of the first token: RoBERTa-like models start after the padding id."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _empty(cfg: LlmConfig, path: str) -> tuple[Any, nn.Module]:
    """Return the model's config, and the base model on the meta device, without weights."""
    import transformers

    with loading(cfg.name):
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
        if cfg.shard != "none" and getattr(config, "quantization_config", None):
            raise ConfigError(
                f"llm.shard={cfg.shard} splits plain weights, not the quantised ones of llm.name={cfg.name}; "
                "use llm.shard=none, or the model that was quantised"
            )
        _check_attention(config, cfg)
        auto = getattr(transformers, auto_classes(config, cfg.name)[0])
        how = {"attn_implementation": "eager"} if cfg.attn == "eager" else {}
        with torch.device("meta"):
            # bfloat16: experts of mixture models run on the meta device in no other dtype.
            model = auto.from_config(
                config, trust_remote_code=cfg.trust_remote_code, dtype=torch.bfloat16, **how
            )
    if not isinstance(getattr(text_part(config), "vocab_size", None), int):
        raise ConfigError(
            f"llm.name={cfg.name} is a {config.model_type} model, whose config states no vocab_size; use a "
            "causal language model or an encoder"
        )
    return config, model


def _check_attention(config: Any, cfg: LlmConfig) -> None:
    """Check that a model's config asks for no attention that transformers would fetch as code.

    Raises:
        ConfigError: it does, and the command does not grant llm.trust_remote_code.
    """
    asked = next((each for each in _attentions(config) if "/" in each), None)
    if asked is not None and not cfg.trust_remote_code:
        raise ConfigError(
            f"llm.name={cfg.name}: its config.json has attn_implementation={asked}, code of a repository; if "
            "you trust it: llm.trust_remote_code=true, else remove that line"
        )


def _attentions(config: Any) -> Iterator[str]:
    """Yield what a config, and the configs of its parts, ask for as attention."""
    asked = getattr(config, "_attn_implementation", None)
    if isinstance(asked, str):
        yield asked
    for name in getattr(config, "sub_configs", {}):
        if (part := getattr(config, name, None)) is not None:
            yield from _attentions(part)


def whole_path(facts: LlmFacts, hook: str) -> str:
    """Return a hook's path in the model with its head: `model.layers.1:out` for `layers.1:out`.

    An encoder is used without a head; its path is unchanged.
    """
    import transformers

    if not facts.causal:
        return hook
    prefix = getattr(getattr(transformers, facts.architecture, None), "base_model_prefix", "") or "model"
    return f"{prefix}.{hook}"
