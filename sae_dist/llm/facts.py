"""Facts of an LLM that can be known before its weights are loaded."""

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts
from sae_dist.llm.hooks import Stop, attach
from sae_dist.llm.hub import cannot_pack, loading, resolve_name
from sae_dist.llm.names import resolve_hook
from sae_dist.llm.special import has_tokenizer, special_tokens

PROBE_TOKENS = 4


def llm_facts(
    cfg: LlmConfig, hook: str | None, target_hook: str | None = None, more: Sequence[str] = ()
) -> tuple[LlmFacts, str | None]:
    """Collect the facts of the LLM in `cfg` from its config, its tokenizer and its modules without weights.

    Args:
        hook: see `names.resolve_hook`; None: the output of the middle layer.
        target_hook: the target of a transcoder, resolved like `hook`; None: an autoencoder.
        more: further hooks, of a grid.

    Returns:
        The facts, and lines that report how hook names were translated (None: no name was).

    Raises:
        ConfigError: no such model or hook, no tokenizer, or a model that is neither causal nor an encoder.
    """
    if cfg.attn not in ("sdpa", "eager"):
        raise ConfigError(f"llm.attn={cfg.attn} does not support explicit 4-D masks; use sdpa or eager")
    path = resolve_name(cfg.name)
    config, model = _empty(cfg, path)
    causal = _is_causal(config, cfg.name)
    text_config = config.get_text_config()
    given = {"hook": hook} if target_hook is None else {"hook": hook, "target_hook": target_hook}
    given |= {f"grid.hook[{number}]": each for number, each in enumerate(more, 1)}
    read = {key: resolve_hook(each, model, text_config.num_hidden_layers, key) for key, each in given.items()}
    hooks = {key: resolved for key, (resolved, _) in read.items()}
    widths = _probe_widths(model.eval(), hooks, cfg.name)
    lines = [line for _, line in read.values() if line is not None]
    if cfg.attn == "sdpa" and not getattr(model, "_supports_sdpa", True):
        raise ConfigError(f"llm.attn=sdpa is not supported by {type(model).__name__}; use llm.attn=eager")
    context = getattr(text_config, "max_position_embeddings", None)
    sizes: dict[str, Any] = _sizes(model, config, hooks, causal)
    facts = LlmFacts(
        name=cfg.name,
        path=path,
        hook=hooks["hook"],
        width=widths["hook"],
        causal=causal,
        context=None if context is None else context - position_offset(model),
        vocab_size=text_config.vocab_size,
        target_hook=hooks.get("target_hook"),
        target_width=widths.get("target_hook"),
        target_first=next(iter(widths)) == "target_hook",
        more=tuple((hooks[key], widths[key]) for key in given if key.startswith("grid.")),
        architecture=type(model).__name__,
        tp_sizes=_tp_sizes(model, text_config),
        **sizes,
        **special_tokens(cfg, path, causal, text_config.vocab_size),
    )
    if not has_tokenizer(path):
        lines.append(
            f"llm.name={cfg.name} has no tokenizer: token ids are read as they are given, and all are "
            "activations but those of tokens.exclude_ids and those with attention mask 0"
        )
    return facts, "\n".join(lines) or None


def last_layer(hooks: Iterable[str]) -> int | None:
    """Return the number of the last layer that the hooks need; None: a hook is outside of the layers."""
    numbers = [_layer(hook.split(":")[0]) for hook in hooks]
    return max((n for n in numbers if n is not None), default=None) if None not in numbers else None


def _layer(path: str) -> int | None:
    return next((int(part) for part in path.split(".") if part.isdigit()), None)


def _sizes(model: nn.Module, config: Any, hooks: dict[str, str], causal: bool) -> dict[str, int]:
    """Count the parameters needed up to the last hook, and those of the whole model with its head."""
    last, text = last_layer(hooks.values()), config.get_text_config()
    counts = [(_layer(name), each.numel()) for name, each in model.named_parameters()]
    whole = sum(count for _, count in counts)
    needed = sum(n for layer, n in counts if last is None or layer is None or layer <= last)
    head = text.vocab_size * text.hidden_size if causal and not config.tie_word_embeddings else 0
    return {"parameters": needed, "whole_parameters": whole + head}


def _tp_sizes(model: Any, config: Any) -> tuple[int, ...] | None:
    """List the group sizes that divide query and key heads; None: transformers has no plan for this model."""
    if not getattr(model, "tp_plan", None):
        return None
    heads = config.num_attention_heads
    shared = math.gcd(heads, getattr(config, "num_key_value_heads", None) or heads)
    return tuple(size for size in range(2, shared + 1) if shared % size == 0)


def position_offset(model: nn.Module) -> int:
    """Return the position id of the first token: RoBERTa-like models start after the padding id."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


def _empty(cfg: LlmConfig, path: str) -> tuple[Any, nn.Module]:
    """Return the model's config, and the model on the meta device, without weights."""
    from transformers import AutoConfig, AutoModel

    with loading(cfg.name):
        config = AutoConfig.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
        if cfg.shard != "none" and getattr(config, "quantization_config", None):
            raise ConfigError(
                f"llm.shard={cfg.shard} splits plain weights, not the quantised ones of llm.name={cfg.name}; "
                "use llm.shard=none, or the model that was quantised"
            )
        with torch.device("meta"):
            # bfloat16: experts of mixture models run on the meta device in no other dtype.
            model = AutoModel.from_config(
                config, trust_remote_code=cfg.trust_remote_code, dtype=torch.bfloat16
            )
    return config, model


def _is_causal(config: Any, name: str) -> bool:
    from transformers.models.auto import modeling_auto as auto

    remote = getattr(config, "auto_map", None) or {}
    encoder = type(config) in auto.MODEL_FOR_MASKED_LM_MAPPING or "AutoModelForMaskedLM" in remote
    causal = type(config) in auto.MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote
    if config.is_encoder_decoder or not (encoder or causal):
        raise ConfigError(
            f"llm.name={name} is a {config.model_type} model; use a causal language model or an encoder"
        )
    return getattr(config, "is_decoder", False) if encoder else True


def _probe_widths(model: nn.Module, hooks: dict[str, str], name: str) -> dict[str, int]:
    """Measure the width of each hook's tensor by a forward on the meta device.

    Returns:
        {key in the config: width}, in the order in which a forward reaches the hooks.
    """
    shapes: dict[str, torch.Size] = {}

    def see(x: Tensor, key: str) -> Tensor:
        shapes.setdefault(key, x.shape)
        if len(shapes) == len(hooks):
            raise Stop
        return x

    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, PROBE_TOKENS, PROBE_TOKENS, device="meta", dtype=torch.bfloat16)
    for key, hook in hooks.items():
        attach(model, hook, partial(see, key=key), key)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=torch.zeros_like(ids))
    except Stop:
        pass
    except ConfigError:
        raise
    except Exception as error:
        raise cannot_pack(name, error) from error
    for key, hook in hooks.items():
        if key not in shapes:
            raise ConfigError(f"{key}={hook} is not reached when llm.name={name} runs; choose another module")
        if len(shapes[key]) != 3 or shapes[key][:2] != (1, PROBE_TOKENS):
            raise ConfigError(
                f"{key}={hook} passes {list(shapes[key])} for {PROBE_TOKENS} tokens; "
                "choose a module with one vector per token"
            )
    return {key: shape[-1] for key, shape in shapes.items()}


def whole_path(facts: LlmFacts, hook: str) -> str:
    """Return a hook's path in the model with its head: `model.layers.1:out` for `layers.1:out`.

    An encoder is used without a head; its path is unchanged.
    """
    import transformers

    if not facts.causal:
        return hook
    prefix = getattr(getattr(transformers, facts.architecture, None), "base_model_prefix", "") or "model"
    return f"{prefix}.{hook}"
