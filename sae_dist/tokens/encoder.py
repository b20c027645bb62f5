"""Token ids from text, by the LLM's own tokenizer, and checks of ids that were made elsewhere."""

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
            reason = first_line(error)
            raise ConfigError(f"llm.name={facts.name} has no tokenizer that loads: {reason}") from error
        # Packing cuts documents; the tokenizer must not warn that they are long.
        self.tokenizer.model_max_length = 2**62

    def ids(self, text: str) -> np.ndarray:
        """Tokenise one document; return its token ids [tokens], int64."""
        encoded = self.tokenizer(text, add_special_tokens=False, truncation=False, padding=False)
        return np.asarray(encoded["input_ids"], dtype=np.int64)

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise a text; return its token ids [tokens] and each token's range of characters, [tokens, 2].

        Raises:
            ConfigError: the tokenizer is not a fast one, so it does not report character ranges.
        """
        if not self.tokenizer.is_fast:
            raise ConfigError(
                "the LLM's tokenizer does not report character ranges; use a model with a fast tokenizer"
            )
        encoded = self.tokenizer(
            text, add_special_tokens=False, truncation=False, padding=False, return_offsets_mapping=True
        )
        ids = np.asarray(encoded["input_ids"], dtype=np.int64)
        return ids, np.asarray(encoded["offset_mapping"], dtype=np.int64).reshape(len(ids), 2)

    def words(self, size: int) -> list[str]:
        """Return the text of each token id from 0 to `size` - 1, as it appears inside a text."""
        return [str(self.tokenizer.decode([number])) for number in range(size)]


def given_ids(values: Any, vocab_size: int) -> np.ndarray:
    """Check token ids that were made elsewhere and return them as int64 [tokens].

    Raises:
        ValueError: not a list of integers, or ids outside of the LLM's vocabulary.
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
