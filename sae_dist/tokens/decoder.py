"""Text of token ids: of each token within its sequence, or of a single token."""

import os
from collections.abc import Sequence
from typing import Any

from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts
from sae_dist.tokens.encoder import Encoder

UNREADABLE = "\ufffd"


class Decoder:
    """The LLM's tokenizer, used to turn token ids back into text.

    Of an LLM without a tokenizer, which was given ids, the text of a token is its number.
    """

    def __init__(self, facts: LlmFacts):
        try:
            self.tokenizer: Any = Encoder(facts).tokenizer
        except ConfigError:
            self.tokenizer = None
        self.vocab_size = facts.vocab_size

    def __len__(self) -> int:
        """Return the number of token ids that have a text: 0 to this number - 1."""
        return self.vocab_size if self.tokenizer is None else len(self.tokenizer)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; joined, the pieces are the text of the whole sequence.

        A character whose bytes are spread over several tokens is given to the last of them; the others have
        an empty piece.
        """
        whole = self._text(ids)
        ends = [len(os.path.commonprefix([self._text(ids[:n]), whole])) for n in range(1, len(ids))]
        pieces, begin = [], 0
        for end in [*ends, len(whole)]:
            pieces.append(whole[begin:end])
            begin = max(begin, end)
        return pieces

    def token(self, number: int) -> str:
        """Return the text of one token id; of a part of a character, the tokenizer's name for the token."""
        if self.tokenizer is None:
            return str(number)
        text = self._text([number])
        return self.tokenizer.convert_ids_to_tokens(number) if UNREADABLE in text or not text else text

    def _text(self, ids: Sequence[int]) -> str:
        if self.tokenizer is None:
            return "".join(f"{number} " for number in ids)
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
