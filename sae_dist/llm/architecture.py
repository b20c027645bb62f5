"""The kind of a model, by its config: which classes load it, which part reads text, what attention it has."""

from typing import Any

from torch import nn

from sae_dist.core.errors import ConfigError

MASKED = ("full_attention", "sliding_attention", "chunked_attention")
"""Kinds of layers whose reach an attention mask describes."""


def auto_classes(config: Any, name: str) -> tuple[str, str, bool]:
    """Return the names of the auto classes of the base model and of the whole model, and if it is causal.

    A causal model predicts the next token; its whole has a head. The whole of an encoder is the base model.

    Raises:
        ConfigError: the model is of another kind.
    """
    from transformers.models.auto import modeling_auto as auto

    kind, remote = type(config), getattr(config, "auto_map", None) or {}
    language = (auto.MODEL_FOR_CAUSAL_LM_MAPPING, auto.MODEL_FOR_MASKED_LM_MAPPING)
    encodes = kind in auto.MODEL_FOR_TEXT_ENCODING_MAPPING
    if encodes and (config.is_encoder_decoder or not any(kind in each for each in language)):
        return "AutoModelForTextEncoding", "AutoModelForTextEncoding", False
    if config.is_encoder_decoder:
        return "AutoModel", "AutoModel", False
    masked = kind in auto.MODEL_FOR_MASKED_LM_MAPPING or "AutoModelForMaskedLM" in remote
    if masked and not getattr(config, "is_decoder", False):
        return "AutoModel", "AutoModel", False
    if masked or kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote:
        return "AutoModel", "AutoModelForCausalLM", True
    if kind in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return "AutoModel", "AutoModelForImageTextToText", True
    raise ConfigError(
        f"llm.name={name} is a {config.model_type} model; use a causal language model or an encoder"
    )


def sees_both_ways(model: nn.Module) -> bool:
    """Tell whether a base model says of its attention that tokens see those after them."""
    said = [
        module.is_causal for module in model.modules() if isinstance(getattr(module, "is_causal", 0), bool)
    ]
    return bool(said) and not any(said)


def reader(model: Any) -> Any:
    """Return the part of a model that is run over text: of an encoder and decoder, the encoder."""
    return model.get_encoder() if model.config.is_encoder_decoder else model


def text_part(config: Any) -> Any:
    """Return the config of the part that reads text; of an encoder and decoder, the encoder's."""
    return config.get_text_config(encoder=True) if config.is_encoder_decoder else config.get_text_config()


def attention(asked: str | None, model: Any) -> str:
    """Return the implementation of attention that a run uses: sdpa where the model has it, else eager.

    Args:
        asked: `llm.attn`.
        model: the base model, as transformers makes it by default.

    Raises:
        ConfigError: the model does not have the one that is asked for.
    """
    default = getattr(model.config, "_attn_implementation", None)
    if asked == "sdpa" and default != "sdpa":
        raise ConfigError(
            f"llm.attn=sdpa is not supported by {type(model).__name__}; use llm.attn=eager, or leave it out"
        )
    return asked or ("sdpa" if default == "sdpa" else "eager")


def carries_state(model: nn.Module, text: Any) -> str | None:
    """Say why documents of one sequence would see each other, whatever the mask; None: nothing says so."""
    for module in model.modules():
        if getattr(module, "_is_stateful", False):
            return "carries a state from token to token"
        if isinstance(module, nn.Conv1d) and module.kernel_size[0] > 1:
            return "convolves over tokens"
    for kind in getattr(text, "layer_types", None) or ():
        if kind not in MASKED:
            return f"has layers of kind {kind}, which no attention mask describes"
    return None


def without_cache(model: Any) -> Any:
    """Switch off what a model would keep of one forward for the next; return the model."""
    model.config.use_cache = text_part(model.config).use_cache = False
    return model
