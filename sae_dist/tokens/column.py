"""The column of a dataset that is read: it holds text, token ids, or chats."""

from typing import Any

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.types import LlmFacts
from sae_dist.tokens.chat import Chat, is_chat
from sae_dist.tokens.encoder import Encoder, given_ids, masked_ids
from sae_dist.tokens.kept import DocumentTokens, ForeignIds, UnusableDocument

MASK = "attention_mask"


class Column:
    """A column of text, token ids or chats; the first example with a value decides which of them it holds.

    With token ids, a column `attention_mask` beside it is obeyed.

    Attributes:
        columns: the columns that are read.

    Raises:
        ConfigError: there is no such column, none of these is in it, or the LLM has no tokenizer for it.
    """

    def __init__(self, cfg: TokensConfig, field: str, facts: LlmFacts, first: dict[str, Any]):
        self.name, self.field, self.vocab_size = cfg.column, field, facts.vocab_size
        if self.name not in first:
            raise ConfigError(
                f"tokens.column={self.name} is not a column of {field}; its columns: {', '.join(first)}"
            )
        value = first[self.name]
        self.encoder: Encoder | None = None
        self.chat: Chat | None = None
        self.columns = [self.name]
        if isinstance(value, str) or is_chat(value):
            self.encoder = Encoder(facts)
            self.encoder.check_size(facts.name)
        if self.encoder is not None and is_chat(value):
            self.chat = Chat(self.encoder, f"tokens.column={self.name} of {field}", cfg.roles)
        elif cfg.roles is not None:
            raise ConfigError(
                f"tokens.roles={cfg.roles} is read with a column of chats, and tokens.column={self.name} of "
                f"{field} is none; leave tokens.roles out, or name the column, such as messages"
            )
        elif self.encoder is None and MASK in first:
            self.columns.append(MASK)
        try:
            self.read(first)
        except (DataError, ForeignIds) as error:
            raise ConfigError(f"tokens.column={self.name}: {field}, example 0 {error}") from error

    def read(self, example: dict[str, Any]) -> DocumentTokens:
        """Return the tokens of one example.

        Raises:
            UnusableDocument: its value is none of what the column holds.
            ForeignIds: it has tokens that the LLM has not.
        """
        value = example[self.name]
        if value is None:
            raise UnusableDocument(f"has no {self.name} (null)")
        if self.chat is not None:
            return self.chat.read(value)
        if self.encoder is not None:
            if not isinstance(value, str):
                raise UnusableDocument(f"is not text: {type(value).__name__}")
            return DocumentTokens(self.encoder.ids(value))
        try:
            return masked_ids(given_ids(value, self.vocab_size), example.get(MASK))
        except ForeignIds:
            raise
        except ValueError as error:
            raise UnusableDocument(f"is not text: {error}") from error
