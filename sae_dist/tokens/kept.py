"""The rule that says which tokens of a document are activations, and why the others are none."""

from dataclasses import dataclass

import numpy as np

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.types import LEFT_OUT, LlmFacts

CODE = {reason: number for number, reason in enumerate(LEFT_OUT, 1)}
"""The number of each reason in `TokensOf.code_T`; 0: the token is kept."""


class UnusableDocument(DataError):
    """A document that is damaged or holds no text: it is left out, counted and named, and the run goes on."""


class ForeignIds(ValueError):
    """Token ids that the LLM does not have: they were made with another tokenizer, and the run ends."""


@dataclass(frozen=True)
class DocumentTokens:
    """The tokens of one document, as a corpus reads them. Letter: T tokens.

    Attributes:
        ids_T: token ids, int64, without those that a mask removed.
        masked: how many tokens a mask removed.
        other_T: true for the words of other roles than `tokens.roles`; None: of no token.
        problem: why the document cannot be used; None: it can.
    """

    ids_T: np.ndarray
    masked: int = 0
    other_T: np.ndarray | None = None
    problem: str | None = None

    @classmethod
    def unusable(cls, problem: str) -> "DocumentTokens":
        """Return no tokens at all, and why."""
        return cls(np.zeros(0, np.int64), problem=problem)


@dataclass(frozen=True)
class TokensOf:
    """The tokens of a document that the LLM reads, with a `CODE` each; by reason, how many were removed."""

    ids_T: np.ndarray
    code_T: np.ndarray
    removed: dict[str, int]


@dataclass(frozen=True)
class Kept:
    """A rule of which tokens are activations.

    Attributes:
        prefix, suffix: special tokens before and after every segment. A document that begins or ends with
            them is read without: packing puts them there.
        special: every other token id that is special.
        listed: `tokens.exclude_ids`.
        pad_id: the token that pads: a run of it at either end of a document is not read. None: there is none.
    """

    prefix: tuple[int, ...]
    suffix: tuple[int, ...] = ()
    special: tuple[int, ...] = ()
    listed: tuple[int, ...] = ()
    pad_id: int | None = None

    @classmethod
    def of(cls, facts: LlmFacts, listed: list[int] | None) -> "Kept":
        """Return the rule of an LLM.

        Raises:
            ConfigError: `tokens.exclude_ids` has an id that is no token of the LLM.
        """
        for each in listed or ():
            if not 0 <= each < facts.vocab_size:
                raise ConfigError(
                    f"tokens.exclude_ids has {each}, which is no token of llm.name={facts.name}; its ids are "
                    f"0 to {facts.vocab_size - 1}"
                )
        return cls(facts.prefix, facts.suffix, facts.special_ids, tuple(listed or ()), facts.pad_id)

    def read(self, document: DocumentTokens) -> TokensOf:
        """Cut what is no text off both ends, and say of every other token whether it is kept."""
        ids_T = document.ids_T
        first, last = self._text(ids_T)
        padding = first + len(ids_T) - last
        before, after = len(self.prefix), len(self.suffix)
        if before and tuple(ids_T[first : first + before].tolist()) == self.prefix:
            first = min(first + before, last)
        if after and tuple(ids_T[max(last - after, first) : last].tolist()) == self.suffix:
            last -= after
        ids_T = ids_T[first:last]
        code_T = np.zeros(len(ids_T), np.uint8)
        if document.other_T is not None:
            code_T[document.other_T[first:last]] = CODE["roles"]
        if self.listed:
            code_T[np.isin(ids_T, self.listed)] = CODE["listed"]
        code_T[np.isin(ids_T, (*self.prefix, *self.suffix, *self.special))] = CODE["special"]
        return TokensOf(ids_T, code_T, {"masked": document.masked, "special": padding})

    def _text(self, ids_T: np.ndarray) -> tuple[int, int]:
        """Return where the text begins and ends: without runs of the padding token."""
        if self.pad_id is None or not len(ids_T) or self.pad_id not in (ids_T[0], ids_T[-1]):
            return 0, len(ids_T)
        text = np.flatnonzero(ids_T != self.pad_id)
        return (int(text[0]), int(text[-1]) + 1) if len(text) else (0, 0)
