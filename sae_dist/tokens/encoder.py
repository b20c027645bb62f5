"""Token ids: made from text by the LLM's own tokenizer, or given."""

from typing import Any

import numpy as np

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line
from sae_dist.core.types import LlmFacts


class Encoder:
    """The LLM's tokenizer, without special tokens and without a limit on length.

    Raises:
        ConfigError: the LLM has no tokenizer that loads.
    """

    def __init__(self, facts: LlmFacts):
        from transformers import AutoTokenizer

        try:
            self.tokenizer = AutoTokenizer.from_pretrained(facts.path)
        except (OSError, ValueError, ImportError) as error:
            raise ConfigError(
                f"llm.name={facts.name} has no tokenizer that loads: {first_line(error)}"
            ) from error
        # Documents are cut by the packing; the tokenizer must not warn that they are long.
        self.tokenizer.model_max_length = 2**62

    def ids(self, text: str) -> np.ndarray:
        """Token ids [tokens] of one document."""
        encoded = self.tokenizer(text, add_special_tokens=False, truncation=False, padding=False)
        return np.asarray(encoded["input_ids"], dtype=np.int64)

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Token ids [tokens] of a text, and where in it each token's characters lie, [tokens, 2].

        Raises:
            ConfigError: the tokenizer cannot say.
        """
        if not self.tokenizer.is_fast:
            raise ConfigError("the LLM's tokenizer does not say where its tokens stand; it needs a fast one")
        encoded = self.tokenizer(
            text, add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=True
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        return ids, np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(len(ids), 2)

    def words(self, size: int) -> list[str]:
        """The text of each of `size` token ids, as it stands in a text."""
        return [str(self.tokenizer.decode([number])) for number in range(size)]


def given_ids(values: Any, vocab_size: int) -> np.ndarray:
    """A list or array of token ids that somebody else made, as int64 [tokens].

    Raises:
        ValueError: not a list of integers, or ids that the LLM does not have.
    """
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"expected a list of token ids, found {ids.dtype} of shape {ids.shape}")
    if ids.size and not (0 <= ids.min() and ids.max() < vocab_size):
        raise ValueError(
            f"it has token ids from {ids.min()} to {ids.max()}, the LLM 0 to {vocab_size - 1}; "
            "tokenise with this LLM's tokenizer"
        )
    return ids.astype(np.int64)
