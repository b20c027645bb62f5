"""Changes of single activations in the real model, nothing of it frozen, and what they do.

Letters: as core.types; C changes, M watched latents at positions, T watched tokens.
"""

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.graph.check.seen import Change, Outcome, Seen, last_logits, rows_of, softcapped, untold
from sae_dist.graph.freeze import Frozen
from sae_dist.graph.sites import Site
from sae_dist.interpret.codes import Codes
from sae_dist.interpret.counted import outliers, special_tokens
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel
from sae_dist.llm.hooks import attach, per_token

BATCH = 16


@dataclass
class Trials:
    """A model with its dictionaries at one prompt, as it is and changed.

    Attributes:
        sites: the places of the graph, in the order of the model; some may have no dictionary.
        ids_S: the prompt.
        tokens: whose logits are watched.
        watched: (layer, position, latent) of the latents whose pre-activations are.
        batch: how many changes are computed at once; one more row is the prompt as it is.
        codes: of each site at the prompt; None: it has no dictionary.
        used: of each site, the positions that count for its dictionary [S], as in the graph.
    """

    sites: Sequence[Site]
    lm: LanguageModel
    ids_S: Tensor
    tokens: Sequence[int]
    watched: Sequence[tuple[int, int, int]] = ()
    batch: int = BATCH
    codes: list[Codes | None] = field(init=False)
    used: list[Tensor | None] = field(init=False)
    clean: Seen = field(init=False)

    def __post_init__(self) -> None:
        """Compute the prompt as it is, in a batch of the size of those with changes."""
        # Dictionaries are applied where the activations are.
        self._dictionaries = [_on(site.dictionary, self.lm.device) for site in self.sites]
        self._groups = self._grouped()
        whole = self._forward([()] * self.batch, None)
        x, y = [each if each is None else each[:1] for each in whole.x], [each[:1] for each in whole.y]
        self.clean = Seen(x, y, whole.logit_NV[:1], whole.out_NV[:1])
        self.used = [self._counted(d, each) for d, each in zip(self._dictionaries, x, strict=True)]
        with torch.no_grad():
            self.codes = [
                None if d is None or each is None else d.encode(each[0].to(d.dtype))
                for d, each in zip(self._dictionaries, x, strict=True)
            ]

    @cached_property
    def frozen(self) -> Frozen:
        """The attention patterns and norms of the prompt."""
        inside = [path for path, way in (site.target.split(":") for site in self.sites) if way == "out"]
        found = Frozen(self.lm.base, inside)
        with torch.no_grad(), found.recording():
            self.lm.model(**self.lm.as_trained(self.ids_S.to(self.lm.device)), use_cache=False)
        return found

    @property
    def layers(self) -> list[int]:
        """The numbers of the sites that have a dictionary."""
        return [layer for layer, d in enumerate(self._dictionaries) if d is not None]

    def at(self, layer: int) -> tuple[Dictionary, Codes]:
        """Return the dictionary of a site, and its codes at the prompt."""
        d, codes = self._dictionaries[layer], self.codes[layer]
        assert d is not None and codes is not None
        return d, codes

    def used_at(self, layer: int) -> Tensor:
        """Return the positions that count for a site's dictionary [S], on the host."""
        found = self.used[layer]
        assert found is not None
        return found

    def _counted(self, d: Dictionary | None, x_1SD: Tensor | None) -> Tensor | None:
        if d is None or x_1SD is None:
            return None
        special_S = special_tokens(d, self.lm, self.ids_S.to(x_1SD.device))
        return outliers(d, special_S, x_1SD[0])[2].cpu()

    def input(self, layer: int) -> Tensor:
        """Return what a site's dictionary reads at the prompt [S, D], in its dtype."""
        x = self.clean.x[layer]
        assert x is not None
        return x[0].to(self.at(layer)[0].dtype)

    def output(self, layer: int) -> Tensor:
        """Return what passes a site's target hook at the prompt [S, E]."""
        return self.clean.y[layer][0]

    def _grouped(self) -> list[tuple[int, int, list[int], Tensor]]:
        """Return the watched latents by layer and position, with the rows that their pre-activations have."""
        groups: dict[tuple[int, int], list[int]] = {}
        for number, (layer, position, _latent) in enumerate(self.watched):
            groups.setdefault((layer, position), []).append(number)
        found = []
        for (layer, position), numbers in groups.items():
            d = self._dictionaries[layer]
            assert d is not None
            rows = rows_of(d.some([self.watched[n][2] for n in numbers]))
            found.append((layer, position, numbers, rows))
        return found

    def watching(self, keys: Sequence[tuple[int, int, int]]) -> "Trials":
        """Return the same at the same prompt, where other latents are watched."""
        found = copy.copy(self)
        found.watched = list(keys)
        found._groups = found._grouped()
        return found

    def run(
        self,
        changes: Sequence[Sequence[Change]],
        *,
        pinned: bool = False,
        mediated: bool = False,
        held: bool = False,
    ) -> Outcome:
        """Return what each change does by itself.

        Args:
            changes: of each trial, all that are made together.
            pinned: what target hooks pass stays as it is but for the change, so that effects are direct ones;
                a skip connection goes on as a function of the hook.
            mediated: measure how much of later layers' change the dictionaries reproduce.
            held: attention patterns and norms stay as they are, as a graph has them.
        """
        parts = []
        for first in range(0, len(changes), self.batch):
            own = list(changes[first : first + self.batch])
            rows: list[Sequence[Change]] = [(), *own, *[()] * (self.batch - len(own))]
            with self.frozen.replaying() if held else nullcontext():
                seen = self._forward(rows, self.clean if pinned else None)
            parts.append(self._difference(seen, own, mediated))
        if not parts:
            empty = torch.zeros(0)
            return Outcome(empty.view(0, len(self.tokens)), empty.view(0, len(self.watched)), empty, empty)
        joined = (torch.cat(each) for each in zip(*parts, strict=True))
        return Outcome(*joined)

    def without_errors(self) -> Tensor:
        """Return the model's logits [V] where every dictionary's output replaces its layer's."""
        return self._forward([()], None, replaced=True).out_NV[0]

    def _difference(
        self, seen: Seen, own: list[Sequence[Change]], mediated: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the fields of `Outcome`, from rows of which the first is the prompt as it is."""
        C = len(own)
        logit_NT = seen.logit_NV[: C + 1, list(self.tokens)].double()
        pre_CM = torch.zeros(C, len(self.watched), dtype=torch.float64)
        for layer, position, numbers, W_ID in self._groups:
            x_NSD = seen.x[layer]
            assert x_NSD is not None
            move_CD = (x_NSD[1 : C + 1, position] - x_NSD[:1, position]).double()
            pre_CM[:, numbers] = (move_CD @ W_ID.double().T).cpu()
        unsaid_C, moved_C = torch.zeros(2, C, dtype=torch.float64)
        if mediated:
            for layer in self.layers:
                later = [n for n, each in enumerate(own) if min(one.layer for one in each) < layer]
                x_NSD = seen.x[layer]
                if later and x_NSD is not None:
                    unsaid, moved = untold(self.at(layer)[0], x_NSD, seen.y[layer], later)
                    unsaid_C[later] += unsaid
                    moved_C[later] += moved
        return (logit_NT[1:] - logit_NT[:1]).cpu(), pre_CM, unsaid_C, moved_C

    def _forward(self, rows: Sequence[Sequence[Change]], pinned: Seen | None, replaced: bool = False) -> Seen:
        """Run the prompt once for every row, each with its own changes."""
        ids_NS = self.ids_S.to(self.lm.device)[None].expand(len(rows), -1)
        given: dict[str, Any] = {"input_ids": ids_NS, "attention_mask": torch.ones_like(ids_NS)}
        if "logits_to_keep" in inspect.signature(self.lm.model.forward).parameters:
            given["logits_to_keep"] = 1
        with torch.no_grad(), self._hooked(rows, pinned, replaced) as seen, last_logits(self.lm) as kept:
            out = self.lm.model(**given, use_cache=False)
        for site, x, y in zip(self.sites, *seen, strict=True):
            if y is None or x is None and site.hook is not None:
                raise ConfigError(f"{self.lm.name} does not reach {site.hook or ''} {site.target}")
        # What the head gives is before the softcap; where there is none, all factors count.
        logit_NV = kept[0] if softcapped(self.lm) else out.logits[:, -1]
        return Seen(*seen, logit_NV - logit_NV.mean(-1, keepdim=True), out.logits[:, -1])

    @contextmanager
    def _hooked(
        self, rows: Sequence[Sequence[Change]], pinned: Seen | None, replaced: bool
    ) -> Iterator[tuple[list[Any], list[Any]]]:
        """Set the hooks for one forward; yield what passes them."""
        x: list[Any] = [None] * len(self.sites)
        y: list[Any] = [None] * len(self.sites)
        shape = len(rows), len(self.ids_S)

        def note(layer: int, given: Tensor) -> Tensor:
            if x[layer] is None:
                x[layer] = per_token(given, shape).clone()  # models add in place
            return given

        def act(layer: int, given: Tensor) -> Tensor:
            if y[layer] is not None:
                return given
            y[layer] = per_token(given, shape).clone()
            new_NSE = y[layer]
            if pinned is not None:
                new_NSE = self._pinned(layer, pinned, x[layer], new_NSE)
            elif replaced and (d := self._dictionaries[layer]) is not None:
                whole_NSE = d.reconstruct(x[layer].to(d.dtype)).to(new_NSE)
                new_NSE = torch.where(self.used_at(layer)[:, None].to(new_NSE.device), whole_NSE, new_NSE)
            mine = [(n, each) for n, row in enumerate(rows) for each in row if each.layer == layer]
            if mine:
                new_NSE = new_NSE.clone()
            for n, each in mine:
                new_NSE[n, each.position] += each.delta_E.to(new_NSE)
            return given if new_NSE is y[layer] else new_NSE.view_as(given)

        with ExitStack() as stack:
            for layer, site in enumerate(self.sites):
                if site.hook is not None:
                    stack.callback(attach(self.lm.base, site.hook, partial(note, layer)).remove)
                handle = attach(self.lm.base, site.target, partial(act, layer), "target_hook")
                stack.callback(handle.remove)
            yield x, y

    def _pinned(self, layer: int, clean: Seen, x_NSD: Tensor | None, y_NSE: Tensor) -> Tensor:
        """Return what a target hook passed at the prompt as it is, with the skip connection's change."""
        d, was_1SD = self._dictionaries[layer], clean.x[layer]
        held_NSE = clean.y[layer].expand_as(y_NSE)
        if d is None or d.sae.W_skip_ED is None or x_NSD is None or was_1SD is None:
            return held_NSE.contiguous()
        W_ED = d.sae.W_skip_ED
        return held_NSE + ((x_NSD - was_1SD).to(W_ED) @ W_ED.T).to(y_NSE)


def _on(d: Dictionary | None, device: torch.device) -> Dictionary | None:
    return d if d is None or d.device == device else d.to(device)
