"""What can be known of an LLM before its weights are loaded."""

from typing import Any

import torch
from torch import Tensor, nn

from sae_dist.core.config import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts
from sae_dist.llm.hooks import Stop, attach
from sae_dist.llm.hub import cannot_pack, loading, resolve_name
from sae_dist.llm.names import resolve_hook

PROBE_TOKENS = 4


def llm_facts(cfg: LlmConfig, hook: str | None) -> tuple[LlmFacts, str | None]:
    """Facts of the LLM that `cfg` names, from its config, its tokenizer, and its modules without weights.

    Args:
        hook: see `names.resolve_hook`; None: the output of the middle layer.

    Returns:
        The facts; and a line that says how the hook's name was read (None: as it stands).

    Raises:
        ConfigError: no such model or hook, no tokenizer, or a model that is neither causal nor an encoder.
    """
    from transformers import AutoConfig, AutoModel

    if cfg.attn not in ("sdpa", "eager"):
        raise ConfigError(f"llm.attn={cfg.attn} cannot be given our masks; use sdpa or eager")
    path = resolve_name(cfg.name)
    with loading(cfg.name):
        config = AutoConfig.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
        with torch.device("meta"):
            # bfloat16: experts of mixture models run on the meta device in no other dtype.
            model = AutoModel.from_config(
                config, trust_remote_code=cfg.trust_remote_code, dtype=torch.bfloat16
            )
    causal = _is_causal(config, cfg.name)
    text_config = config.get_text_config()
    resolved, line = resolve_hook(hook, model, text_config.num_hidden_layers)
    width = _probe_width(model.eval(), resolved, cfg.name)
    if cfg.attn == "sdpa" and not getattr(model, "_supports_sdpa", True):
        raise ConfigError(f"llm.attn=sdpa is not supported by {type(model).__name__}; use llm.attn=eager")
    prefix, suffix = _special_tokens(cfg, path, causal)
    context = getattr(text_config, "max_position_embeddings", None)
    facts = LlmFacts(
        name=cfg.name,
        path=path,
        hook=resolved,
        width=width,
        causal=causal,
        context=None if context is None else context - position_offset(model),
        vocab_size=text_config.vocab_size,
        prefix=prefix,
        suffix=suffix,
    )
    return facts, line


def position_offset(model: nn.Module) -> int:
    """The position id of the first token: RoBERTa and its kin count from the padding token's id on."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return 0 if module.padding_idx is None else module.padding_idx + 1
    return 0


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


def _probe_width(model: nn.Module, hook: str, name: str) -> int:
    shapes: list[torch.Size] = []

    def see(x: Tensor) -> Tensor:
        shapes.append(x.shape)
        raise Stop

    ids = torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta")
    mask = torch.zeros(1, 1, PROBE_TOKENS, PROBE_TOKENS, device="meta", dtype=torch.bfloat16)
    attach(model, hook, see)
    try:
        with torch.no_grad():
            model(input_ids=ids, attention_mask=mask, position_ids=torch.zeros_like(ids))
    except Stop:
        pass
    except ConfigError as error:
        raise ConfigError(f"hook={hook}: {error}; choose another module") from error
    except Exception as error:
        raise cannot_pack(name, error) from error
    if not shapes:
        raise ConfigError(f"hook={hook} is not reached when llm.name={name} runs; choose another module")
    if len(shapes[0]) != 3 or shapes[0][:2] != (1, PROBE_TOKENS):
        raise ConfigError(
            f"hook={hook} passes {list(shapes[0])} for {PROBE_TOKENS} tokens; "
            "choose a module with one vector per token"
        )
    return shapes[0][-1]


def _special_tokens(cfg: LlmConfig, path: str, causal: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What stands before and after the text of one segment."""
    from transformers import AutoTokenizer

    with loading(cfg.name, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
        text = tokenizer("a", add_special_tokens=False)["input_ids"]
        if not text:
            raise ConfigError(f"llm.name={cfg.name} has no tokenizer in its folder; save its own there")
    if causal:
        return (() if tokenizer.bos_token_id is None else (tokenizer.bos_token_id,)), ()
    whole = tokenizer("a")["input_ids"]
    begin = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    return tuple(whole[:begin]), tuple(whole[begin + len(text) :])
