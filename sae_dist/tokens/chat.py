"""Chats: lists of {role, content}, rendered by the template of the LLM's tokenizer."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line
from sae_dist.tokens.encoder import Encoder, in_vocabulary, without_surrogates
from sae_dist.tokens.kept import DocumentTokens, UnusableDocument

OPEN, SHUT = "\ue0f0", "\ue0f1"
"""Characters of the private use area that mark where words begin and end; a chat must not have them."""

ROLES = {"human": "user", "gpt": "assistant"}
"""What ShareGPT's form calls the roles of a chat."""


class Chat:
    """A renderer of chats.

    Args:
        roles: whose words are activations; None: every token that is not special, such as the names of roles
            that a template writes, too.

    Raises:
        ConfigError: the tokenizer has no chat template, or cannot say which characters a token stands for.
    """

    def __init__(self, encoder: Encoder, field: str, roles: Sequence[str] | None):
        self.encoder, self.tokenizer, self.roles = encoder, encoder.tokenizer, roles
        if not self.tokenizer.chat_template:
            raise ConfigError(
                f"{field} holds chats, and the LLM's tokenizer has no chat template; use the model that was "
                "trained on chats, or a column of text"
            )
        if roles is not None and not self.tokenizer.is_fast:
            raise ConfigError(
                f"tokens.roles={list(roles)} needs a tokenizer that says which characters a token stands for "
                "(a fast one); leave tokens.roles out"
            )

    def read(self, value: Any) -> DocumentTokens:
        """Return the tokens of a chat.

        Raises:
            UnusableDocument: it is no chat, or the template does not accept it.
        """
        messages = [clean(each) for each in listed(value)]
        text = self._render(messages)
        if self.roles is None:
            return DocumentTokens(self.encoder.ids(text))
        ids_T, span_T2 = self.encoder.spans(text)
        wanted = np.zeros(len(text) + 1, np.int64)
        for begin, end in self._words(messages, text):
            wanted[begin + 1 : end + 1] = 1
        before = wanted.cumsum()
        in_vocabulary(ids_T, self.encoder.vocab_size)
        # A token may begin with the space before a word.
        return DocumentTokens(ids_T, other_T=before[span_T2[:, 1]] == before[span_T2[:, 0]])

    def _render(self, messages: list[dict[str, Any]]) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
            )
        # Templates are programs of any origin, and raise what they like.
        except Exception as error:
            raise UnusableDocument(f"is not accepted by the chat template: {first_line(error)}") from error

    def _words(self, messages: list[dict[str, Any]], text: str) -> list[tuple[int, int]]:
        """Return where in the rendered text the words of the wanted roles are.

        They are found by marking them and rendering again. Some templates strip words, so that marks would
        keep spaces that are not in the text: then the words are marked without the spaces around them.

        Raises:
            UnusableDocument: the template writes other words than the messages'.
        """
        assert self.roles is not None
        if OPEN in text or SHUT in text:
            raise UnusableDocument(f"has the character U+{ord(OPEN):X} or U+{ord(SHUT):X}, which marks roles")
        for strip in (False, True):
            marked = [mark(each, strip) if each["role"] in self.roles else each for each in messages]
            found = self._render(marked)
            if found.replace(OPEN, "").replace(SHUT, "") == text:
                return spans_of(found)
        raise UnusableDocument("is rewritten by the chat template, so its roles cannot be told apart")


def is_chat(value: Any) -> bool:
    """Return whether a value of a dataset is a chat, whole or with its fields apart."""
    if isinstance(value, dict):
        return {"role", "content"} <= value.keys() or {"from", "value"} <= value.keys()
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def listed(value: Any) -> list[dict[str, Any]]:
    """Return a chat as a list of messages; a dataset may hold it as an object of lists.

    Raises:
        UnusableDocument: a message is not an object with a role.
    """
    if isinstance(value, dict):
        value = [dict(zip(value, each, strict=True)) for each in zip(*value.values(), strict=True)]
    if not isinstance(value, list) or not value:
        raise UnusableDocument("is not a list of messages")
    value = [in_our_words(each) for each in value]
    for each in value:
        if not isinstance(each, dict) or not isinstance(each.get("role"), str) or "content" not in each:
            fields = f"; its fields: {', '.join(map(str, each))}" if isinstance(each, dict) else ""
            raise UnusableDocument(f"has a message that is not an object with role and content{fields}")
    return value


def in_our_words(message: Any) -> Any:
    """Return a message of ShareGPT's form, {from, value}, as {role, content}; any other as it is."""
    if not isinstance(message, dict) or not {"from", "value"} <= message.keys() or message.get("role"):
        return message
    return {"role": ROLES.get(message["from"], message["from"]), "content": message["value"]}


def clean(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message without the fields that only others of its dataset have, and without surrogates."""
    kept = {key: value for key, value in message.items() if value is not None or key == "content"}
    if isinstance(kept["content"], str):
        kept["content"] = without_surrogates(kept["content"])
    return kept


def mark(message: dict[str, Any], strip: bool) -> dict[str, Any]:
    """Return a copy of a message whose words stand between marks."""
    message = copy.deepcopy(message)
    if isinstance(message["content"], str):
        message["content"] = marked_text(message["content"], strip)
    elif isinstance(message["content"], list):
        for part in message["content"]:
            if isinstance(part, dict) and isinstance(part.get("text"), str):
                part["text"] = marked_text(part["text"], strip)
    return message


def marked_text(text: str, strip: bool) -> str:
    """Return a text between marks, with the spaces around it outside of them if `strip`."""
    words = text.strip() if strip else text
    if not words:
        return text
    begin = text.index(words)
    return text[:begin] + OPEN + words + SHUT + text[begin + len(words) :]


def spans_of(marked: str) -> list[tuple[int, int]]:
    """Return where marked words are, counted in the text without the marks."""
    spans, begin, at = [], 0, 0
    for character in marked:
        if character == OPEN:
            begin = at
        elif character == SHUT:
            spans.append((begin, at))
        else:
            at += 1
    return spans
