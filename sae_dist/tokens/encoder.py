"""Text to token ids, with the LLM's own tokenizer."""

import numpy as np

from sae_dist.core.errors import ConfigError
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
            reason = str(error).splitlines()[0]
            raise ConfigError(f"llm.name={facts.name} has no tokenizer that loads: {reason}") from error
        # Documents are cut by the packing; the tokenizer must not warn that they are long.
        self.tokenizer.model_max_length = 2**62

    def ids(self, text: str) -> np.ndarray:
        """Token ids [tokens] of one document."""
        encoded = self.tokenizer(text, add_special_tokens=False, truncation=False, padding=False)
        return np.asarray(encoded["input_ids"], dtype=np.int64)
