"""Text from token ids: of each token in its context, or of one alone."""

import os
from collections.abc import Sequence
from typing import Any

from sae_dist.core.types import LlmFacts
from sae_dist.tokens.encoder import Encoder

UNREADABLE = "\ufffd"


class Decoder:
    """The LLM's tokenizer, the other way round.

    Raises:
        ConfigError: the LLM has no tokenizer that loads.
    """

    def __init__(self, facts: LlmFacts):
        self.tokenizer: Any = Encoder(facts).tokenizer

    def __len__(self) -> int:
        """Ids below it have a text."""
        return len(self.tokenizer)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; joined, they are the text of all.

        A character that tokens share, each some bytes of it, stands with the last of them: the others have
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
        """One token alone; if it is a part of a character, the tokenizer's own name of it."""
        text = self._text([number])
        return self.tokenizer.convert_ids_to_tokens(number) if UNREADABLE in text or not text else text

    def _text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
