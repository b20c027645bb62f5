"""The special tokens of an LLM's tokenizer, read before any weight is loaded."""

from pathlib import Path
from typing import Any

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.hub import loading

TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json", "spiece*")
"""What tokenizers are stored as, by any class of transformers."""


def has_tokenizer(path: str) -> bool:
    """Return whether a model has a tokenizer: a folder may hold none, for token ids made elsewhere."""
    folder = Path(path)
    return not folder.is_dir() or any(True for each in TOKENIZER_FILES for _ in folder.glob(each))


def special_tokens(cfg: LlmConfig, path: str, causal: bool, vocab_size: int) -> dict[str, Any]:
    """Return the fields of `LlmFacts` that a tokenizer decides.

    Without a tokenizer there is nothing before or after a segment, and no id is special.

    Raises:
        ConfigError: it does not load, or the LLM has no embedding for what it puts around a text.
    """
    if not has_tokenizer(path):
        return {"prefix": (), "suffix": ()}
    from transformers import AutoTokenizer

    with loading(cfg.name, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=cfg.trust_remote_code)
        text = tokenizer("a", add_special_tokens=False)["input_ids"]
        if not text:
            raise ConfigError(f"llm.name={cfg.name} has no tokenizer in its folder; save its own there")
    prefix, suffix = around(tokenizer, causal)
    if any(each >= vocab_size for each in (*prefix, *suffix)):
        raise ConfigError(
            f"llm.name={cfg.name} has embeddings for {vocab_size} tokens, and its tokenizer puts token "
            f"{max((*prefix, *suffix))} around a text; use the tokenizer that the model was trained with"
        )
    marks = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {
        "prefix": prefix,
        "suffix": suffix,
        "special_ids": tuple(sorted(marks | set(tokenizer.all_special_ids))),
        "pad_id": tokenizer.pad_token_id,
    }


def around(tokenizer: Any, causal: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that go before and after a text: BOS, or what an encoder's tokenizer adds."""
    if causal:
        bos = tokenizer.bos_token_id
        return (() if bos is None else (int(bos),)), ()
    whole, text = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    begin = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    return tuple(whole[:begin]), tuple(whole[begin + len(text) :])


def tokenizer_of(path: str, trust_remote_code: bool = False) -> Any:
    """Return a model's tokenizer; None: there is none, or it does not load."""
    if not has_tokenizer(path):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError):
        return None
