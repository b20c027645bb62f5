"""Text of an atlas's token ids, and token ids of a text, by the tokenizer of the run's model."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG

if TYPE_CHECKING:
    from sae_dist.tokens.decoder import Decoder

KEPT_TEXTS = 1 << 14
"""Texts of sequences that are kept for the next time."""


class Words:
    """A tokenizer that is loaded when it is first needed; without one a token is its number.

    Args:
        run: the run folder, whose config names the model; None: it is not known.
        decoder: used in place of the run's.
    """

    def __init__(self, run: Path | None, decoder: "Decoder | None" = None):
        self.run, self._given = run, decoder
        self.pieces = lru_cache(KEPT_TEXTS)(self._pieces)
        self.token = lru_cache(KEPT_TEXTS)(self._token)

    @cached_property
    def _loaded(self) -> "tuple[Decoder | None, str | None]":
        if self._given is not None:
            return self._given, None
        if self.run is None or not (self.run / CONFIG).is_file():
            return None, "the run's config is not beside the atlas"
        from sae_dist.config.run import load_config
        from sae_dist.llm.facts import llm_facts
        from sae_dist.tokens.decoder import Decoder

        try:
            cfg = load_config(self.run / CONFIG)
            facts, _ = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
        except ConfigError as error:
            return None, str(error)
        decoder = Decoder(facts)
        lacking = None if decoder.tokenizer is not None else f"llm.name={facts.name} has no tokenizer"
        return decoder, lacking

    @property
    def lacking(self) -> str | None:
        """The reason why tokens are shown as numbers; None: they have a text."""
        return self._loaded[1]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer; None: there is none here."""
        decoder, _ = self._loaded
        return None if decoder is None else decoder.tokenizer

    @property
    def decoder(self) -> "Decoder | None":
        """The tokenizer as a decoder; None: there is none here."""
        decoder, lacking = self._loaded
        return decoder if lacking is None else None

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens.

        Raises:
            ConfigError: there is no tokenizer here.
        """
        from sae_dist.tokens.encoder import without_surrogates

        if self.tokenizer is None:
            raise ConfigError(f"a text cannot be made tokens here: {self.lacking}; give token ids")
        encoded = self.tokenizer(without_surrogates(text), add_special_tokens=False, verbose=False)
        return [int(each) for each in encoded["input_ids"]]

    def _pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Return the text of each token of a sequence, given as a tuple; joined they are its text."""
        decoder, _ = self._loaded
        if decoder is None or decoder.tokenizer is None:
            return tuple(f"{each} " for each in ids)
        return tuple(decoder.pieces(ids))

    def _token(self, number: int) -> str:
        """Return the text of one token alone."""
        decoder, _ = self._loaded
        if decoder is None or not 0 <= number < max(len(decoder), 1):
            return str(number)
        return decoder.token(number)
