"""The tokens that pass a model in a forward: their ids, their places in the text, which of them are real.

Letters: as core.types.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError

CACHES = ("past_key_values", "cache")
"""The argument with the cache: its name in earlier releases of transformers, and in later ones."""
FEW = 256
"""So many ids are looked up one by one."""
Positions = str | int | Sequence[int] | range | Tensor | Callable[["Forward"], Tensor]
"""Which positions are meant: a word of `WORDS`, numbers of tokens, a mask, or a function that makes one."""
WORDS = {
    "all": "every token but special ones and padding",
    "every": "special tokens, too",
    "prompt": "the tokens of the prompt that `all` names",
    "generated": "the tokens that are generated",
    "last": "the last token of the prompt",
}


@dataclass
class Forward:
    """The tokens of one forward. What a generated token seldom needs is computed when it is asked for.

    Attributes:
        shape: N sequences and S tokens each.
        device: of the tokens.
        ids_NS: token ids; None: the model was given embeddings.
        real_NS: false for padding; None: there is none.
        special_ids: special tokens of the tokenizer.
        past: how many tokens each sequence has in a cache, padding included.
        mask_NT: true for tokens, in the cache and here, false for padding; None: there is no padding.
        first: the forward that read the prompt; None: this one.
        passed: whether the hook was passed already: a module that runs several times counts once.
    """

    shape: tuple[int, int]
    device: torch.device
    ids_NS: Tensor | None
    real_NS: Tensor | None
    special_ids: frozenset[int]
    past: int = 0
    mask_NT: Tensor | None = None
    first: "Forward | None" = None
    passed: bool = False

    @cached_property
    def place_NS(self) -> Tensor:
        """The number of each token in its text, padding before it not counted; BOS is 0."""
        N, S = self.shape
        place_NS = torch.arange(self.past, self.past + S, device=self.device)[None].expand(N, S)
        if self.mask_NT is not None:
            place_NS = place_NS - (self.mask_NT.cumsum(1) == 0).sum(1, keepdim=True)
        return place_NS

    @cached_property
    def prompt_N1(self) -> Tensor:
        """The number of tokens of each sequence's prompt."""
        return self.place_NS[:, -1:] + 1 if self.first is None else self.first.prompt_N1

    def mask(self, positions: Positions) -> Tensor | None:
        """Return which tokens are meant [N, S]; None: all of them are.

        Raises:
            ConfigError: the words or numbers mean nothing, or a mask has another shape.
        """
        if isinstance(positions, str):
            return self._named(positions)
        if isinstance(positions, Tensor) and positions.dtype == torch.bool or callable(positions):
            given = positions(self) if callable(positions) else positions
            return self._of_mask(given)
        numbers = [positions] if isinstance(positions, int) else [int(each) for each in positions]
        at_NS = torch.zeros(self.shape, dtype=torch.bool, device=self.device)
        for number in numbers:
            at_NS |= self.place_NS == (number if number >= 0 else self.prompt_N1 + number)
        return at_NS if self.real_NS is None else at_NS & self.real_NS

    def ordinary(self) -> Tensor | None:
        """Return which tokens are real and not special [N, S]; None: all of them are."""
        if self.ids_NS is None or not self.special_ids:
            return self.real_NS
        if self.ids_NS.is_cpu and self.ids_NS.numel() <= FEW:  # generated tokens, often
            ids = [self.ids_NS.item()] if self.ids_NS.numel() == 1 else self.ids_NS.flatten().tolist()
            if self.special_ids.isdisjoint(ids):
                return self.real_NS
        special = torch.tensor(sorted(self.special_ids), device=self.device)
        ordinary_NS = torch.isin(self.ids_NS, special, invert=True)
        return ordinary_NS if self.real_NS is None else ordinary_NS & self.real_NS

    def _named(self, word: str) -> Tensor | None:
        if word not in WORDS:
            raise ConfigError(
                f"positions={word} is none of {', '.join(WORDS)}; numbers and masks are taken, too"
            )
        if word == "every":
            return self.real_NS
        ordinary_NS = self.ordinary()
        if word == "all":
            return ordinary_NS
        if word == "last":
            at_NS = self.place_NS == self.prompt_N1 - 1
            return at_NS if self.real_NS is None else at_NS & self.real_NS
        within_NS = self.place_NS < self.prompt_N1
        within_NS = ~within_NS if word == "generated" else within_NS
        return within_NS if ordinary_NS is None else within_NS & ordinary_NS

    def _of_mask(self, given: Tensor) -> Tensor:
        N, S = self.shape
        wide = given if given.dim() == 2 else given[None].expand(N, -1)
        if wide.shape == (N, S):
            found = wide
        elif wide.shape[0] == N and int(self.place_NS.max()) < wide.shape[1]:
            found = wide.gather(1, self.place_NS.clamp(min=0))
        else:
            raise ConfigError(f"positions is a mask of shape {list(given.shape)}, the tokens are {N} x {S}")
        found = found.to(self.device)
        return found if self.real_NS is None else found & self.real_NS


class ForwardReader:
    """A reader of the arguments of a model's forwards, one after the other, with or without a cache.

    Args:
        places: false: nobody will ask for the tokens' places in the text, and the cache is not looked at.
    """

    def __init__(self, module: Any, special_ids: frozenset[int], places: bool = True):
        self._places = places
        self._names = list(inspect.signature(module.forward).parameters)
        self._special_ids = special_ids
        self._first: Forward | None = None
        self._ids: Tensor | None = None
        self._seen = 0
        self._cache = ""

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Forward:
        """Return the tokens of the forward that is called with these arguments.

        Raises:
            ConfigError: there are neither token ids nor embeddings.
        """
        given = dict(zip(self._names, args, strict=False)) | kwargs if args else kwargs
        ids = given.get("input_ids")
        tokens = given.get("inputs_embeds") if ids is None else ids
        if not isinstance(tokens, Tensor) or tokens.dim() < 2:
            raise ConfigError("the model was called without input_ids [N, S] or inputs_embeds [N, S, D]")
        N, S, *_ = tokens.shape
        if S == 1 and not self._places:
            return Forward((N, S), tokens.device, ids, None, self._special_ids)
        mask = given.get("attention_mask")
        real_NS = None
        if mask is not None:
            mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] >= S else None
            if mask is not None and S > 1 and not bool(mask.all()):
                real_NS = mask[:, -S:] != 0
        past = self._past(given, mask, S)
        padded = mask if past or real_NS is not None else None
        first, before = self._first, self._ids
        # Several tokens after a cached prompt belong to the prompt: it is read in parts, or goes on.
        if first is not None:
            goes_on = past and S == 1 or _continues(ids, before)
            first = first if goes_on and first.shape[0] == N else None
        found = Forward((N, S), tokens.device, ids, real_NS, self._special_ids, past, padded, first)
        self._first, self._ids, self._seen = first or found, ids, past + S
        return found

    def _past(self, given: dict[str, Any], mask: Tensor | None, S: int) -> int:
        """Return how many tokens the model has seen in forwards before this one."""
        cache = given.get(self._cache)
        if not hasattr(cache, "get_seq_length"):  # it is past_key_values, or cache, or cache_params
            self._cache = next((key for key in given if hasattr(given[key], "get_seq_length")), "")
            cache = given.get(self._cache)
        if cache is not None:
            try:
                return int(cache.get_seq_length())
            except ValueError:  # one that holds states alone, which have no length: it goes on
                return mask.shape[1] - S if mask is not None and mask.shape[1] > S else self._seen * (S == 1)
        if mask is not None:
            return mask.shape[1] - S
        if isinstance(given.get("cache_position"), Tensor):
            return int(given["cache_position"][0])
        return 0


def _continues(ids: Tensor | None, before: Tensor | None) -> bool:
    """Return whether ids are those of the forward before and one more, as without a cache."""
    if ids is None or before is None or ids.shape != (before.shape[0], before.shape[1] + 1):
        return False
    return bool((ids[:, :-1] == before).all())
