"""Token ids from text, by the LLM's own tokenizer, and checks of ids that were made elsewhere."""

from typing import Any

import numpy as np

from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import without_panics
from sae_dist.core.text import first_line
from sae_dist.core.types import LlmFacts
from sae_dist.tokens.kept import DocumentTokens, ForeignIds

ANOTHER = "tokenise with this LLM's tokenizer"

TOKENIZER = "the LLM's tokenizer"


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
        self.vocab_size = facts.vocab_size
        if not self.tokenizer("a", add_special_tokens=False)["input_ids"]:
            raise ConfigError(
                f"llm.name={facts.name} has no tokenizer in its folder; save its own there, or give token "
                "ids (tokens=webdataset, or a column of tokens=hf)"
            )

    def check_size(self, name: str) -> None:
        """Check that the LLM `name` has every token that a text can be made of.

        Marks that the tokenizer has besides, such as one for images, do no harm: they occur in no text.

        Raises:
            ConfigError: it has not.
        """
        if len(self.tokenizer) <= self.vocab_size:
            return
        marks = self.tokenizer.added_tokens_decoder
        lacking = [each for each in self.tokenizer.get_vocab().values() if each >= self.vocab_size]
        if any(each not in marks for each in lacking):
            raise ConfigError(
                f"llm.name={name} has embeddings for {self.vocab_size} tokens, and its tokenizer makes "
                f"{len(self.tokenizer)}; use the tokenizer that the model was trained with"
            )

    def ids(self, text: str) -> np.ndarray:
        """Tokenise one document; return its token ids [tokens], int64.

        Halves of surrogate pairs, which are no characters, become U+FFFD, like bytes that are not UTF-8.

        Raises:
            ForeignIds: a token of it is not in the LLM's vocabulary.
        """
        if not text.isascii():
            text = without_surrogates(text)
        with without_panics(TOKENIZER):
            encoded = self.tokenizer(text, add_special_tokens=False, truncation=False, padding=False)
        return in_vocabulary(np.asarray(encoded["input_ids"], dtype=np.int64), self.vocab_size)

    def spans(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """Tokenise a text; return its token ids [tokens] and each token's range of characters, [tokens, 2].

        Raises:
            ConfigError: the tokenizer is not a fast one, so it does not report character ranges.
        """
        if not self.tokenizer.is_fast:
            raise ConfigError(
                "the LLM's tokenizer does not report character ranges; use a model with a fast tokenizer"
            )
        with without_panics(TOKENIZER):
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
        ValueError: not a list of integers.
        ForeignIds: ids outside of the LLM's vocabulary.
    """
    ids = np.asarray(values)
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ValueError(f"expected a list of token ids, found {ids.dtype} of shape {ids.shape}")
    return in_vocabulary(ids, vocab_size).astype(np.int64)


def masked_ids(ids: np.ndarray, mask: Any) -> DocumentTokens:
    """Return the tokens [tokens] whose attention mask is not 0; mask None: all of them.

    Raises:
        ValueError: the mask does not have one number for each token.
    """
    if mask is None:
        return DocumentTokens(ids)
    keep = np.asarray(mask)
    if keep.shape != ids.shape or (keep.size and keep.dtype.kind not in "iub"):
        raise ValueError(f"its attention mask is {keep.dtype} of shape {keep.shape}, its ids of {ids.shape}")
    kept = ids[keep != 0]
    return DocumentTokens(kept, masked=len(ids) - len(kept))


def in_vocabulary(ids: np.ndarray, vocab_size: int) -> np.ndarray:
    """Return token ids [tokens] as they are, once they are known to be the LLM's.

    Raises:
        ForeignIds: some are outside of its vocabulary.
    """
    if ids.size and not (0 <= ids.min() and ids.max() < vocab_size):
        raise ForeignIds(
            f"it has token ids from {ids.min()} to {ids.max()}, the LLM 0 to {vocab_size - 1}; {ANOTHER}"
        )
    return ids


def without_surrogates(text: str) -> str:
    """Return a text with U+FFFD for each half of a surrogate pair that is alone; pairs become characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
