"""A set of dictionaries of one model, one for each place: a grid's, or a published suite's."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

import torch

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.load import load
from sae_dist.interpret.set_places import Found, found_at

SHOWN = 4


class DictionarySet(Sequence[Dictionary]):
    """The dictionaries of one model in the order of its layers; `sae_dist.load_set` makes one.

    No two reconstruct the same place. A slice is a set again.

    Attributes:
        folder: where they were found, as it was given.
    """

    def __init__(self, dictionaries: Sequence[Dictionary], folder: Path):
        """Put dictionaries in order.

        Raises:
            ConfigError: there are none, one does not say its place in the model, two are for one place, or
                they name different models.
        """
        self.folder = folder
        for each in dictionaries:
            if each.hook is None or each.is_transcoder and each.target_hook is None:
                raise ConfigError(
                    f"{each.place.folder} does not say where in the model it belongs; give that of all, with "
                    "* for the layer: sd.load_set(..., hook='layers.*.mlp:in', target_hook='layers.*.mlp')"
                )
        if not dictionaries:
            raise ConfigError(f"{folder} has no dictionaries; give a grid, or a folder of runs or exports")
        self._all = tuple(sorted(dictionaries, key=lambda each: layer_of(target_of(each))))
        self._check()

    @overload
    def __getitem__(self, place: int) -> Dictionary: ...

    @overload
    def __getitem__(self, place: slice) -> "DictionarySet": ...

    def __getitem__(self, place: int | slice) -> "Dictionary | DictionarySet":
        """Return the dictionary at a place of the order, or a set of some."""
        return DictionarySet(self._all[place], self.folder) if isinstance(place, slice) else self._all[place]

    def __len__(self) -> int:
        """Return the number of dictionaries."""
        return len(self._all)

    def __iter__(self) -> Iterator[Dictionary]:
        """Yield the dictionaries in the order of the model's layers."""
        return iter(self._all)

    @property
    def hooks(self) -> tuple[tuple[str, str], ...]:
        """The places that each reads and reconstructs; of an autoencoder they are the same."""
        return tuple((str(each.hook), target_of(each)) for each in self._all)

    @property
    def model_name(self) -> str | None:
        """The model that they were trained on; None: none of them says."""
        return next((name for each in self._all if (name := each.place.model_name) is not None), None)

    @property
    def context(self) -> int | None:
        """The number of tokens of a sequence in training, the least of all; None: none of them says."""
        found = [each.place.context for each in self._all]
        return min((each for each in found if each is not None), default=None)

    @property
    def is_transcoder(self) -> bool:
        """The answer to: do all of them reconstruct another place than they read?"""
        return all(each.is_transcoder for each in self._all)

    @property
    def num_latents(self) -> int:
        """The number of latents of all together."""
        return sum(each.num_latents for each in self._all)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "DictionarySet":
        """Return the same set on another device, or in another dtype, in memory."""
        return DictionarySet([each.to(device, dtype) for each in self._all], self.folder)

    def __repr__(self) -> str:
        """Return the model and a line for each dictionary."""
        lines = [f"{len(self)} dictionaries of {self.model_name or 'a model that they do not name'}"]
        for each, (hook, target) in zip(self._all, self.hooks, strict=True):
            place = f"{hook} to {target}" if each.is_transcoder else hook
            lines.append(f"  {place}: {each.kind}, {each.num_latents} latents of width {each.width}")
        return "\n".join(lines)

    def _check(self) -> None:
        names = {Path(name).name.lower() for each in self._all if (name := each.place.model_name) is not None}
        if len(names) > 1:
            raise ConfigError(f"{self.folder} has dictionaries of {' and '.join(sorted(names))}; give one's")
        by_target: dict[str, list[str]] = {}
        for each in self._all:
            by_target.setdefault(target_of(each).removesuffix(":out"), []).append(str(each.place.folder))
        for target, places in by_target.items():
            if len(places) > 1:
                more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
                raise ConfigError(
                    f"{self.folder} has {len(places)} dictionaries for {target}: "
                    f"{', '.join(places[:SHOWN])}{more}; give one of each place, as a pattern "
                    "('outputs/grid/*,k=32') or as a list of folders"
                )


def target_of(dictionary: Dictionary) -> str:
    """Return the place that a dictionary reconstructs."""
    return str(dictionary.target_hook if dictionary.is_transcoder else dictionary.hook)


def layer_of(hook: str) -> int:
    """Return the number of the layer in a hook's name; -1: there is no number, as of the embedding."""
    return next((int(part) for part in hook.partition(":")[0].split(".") if part.isdigit()), -1)


def load_set(
    where: str | Path | Sequence[str | Path],
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    format: str | None = None,
    transcoder: bool = False,
    verify: bool | None = None,
    hook: str | None = None,
    target_hook: str | None = None,
) -> DictionarySet:
    """Open the dictionaries of a model's layers, read-only, as `load` opens one.

    Args:
        where: a grid's folder; a folder of runs or exports; a folder with the files of several layers, as
            circuit-tracer's, or with a folder for each, as SAELens', sparsify's and Gemma Scope's; a pattern
            of such folders, `outputs/grid/*,k=32`; a list of what `load` opens; a folder of the Hub,
            `organisation/name/folder`, whose last parts may be patterns.
        device, dtype, format, transcoder, verify: of each, see `load`.
        hook, target_hook: where their files do not say it, with * for the number of the layer, that the
            names of their folders have: `layers.*.mlp:in`.

    Raises:
        ConfigError: there are none, or they are no set; see `DictionarySet`.
    """
    how = {"device": device, "dtype": dtype, "format": format, "transcoder": transcoder, "verify": verify}
    if target_hook is not None:
        how["transcoder"] = True
    found = found_at(where, format)
    dictionaries = [_placed(load(each.place, **how), each, hook, target_hook) for each in found]  # type: ignore[arg-type]
    if isinstance(where, str | Path):
        return DictionarySet(dictionaries, Path(where).expanduser())
    return DictionarySet(dictionaries, found[0].place.parent if found else Path())


def _placed(d: Dictionary, found: Found, hook: str | None, target_hook: str | None) -> Dictionary:
    """Say where in the model a dictionary belongs, if the user does, or as its folder's name suggests."""
    if d.place.run is not None:
        return d
    said = dict(d.place.said)
    for key, given in (("hook_name", hook), ("hook_name_out", target_hook)):
        if given is not None:
            said[key] = given.replace("*", str(found.layer_for(given)))
            said.pop(f"hf_{key}", None)
    if d.hook is None and hook is None and (proposed := found.hook) is not None:
        said["hook_name"] = f"{proposed.removesuffix(':out')}:in" if d.is_transcoder else proposed
        if d.is_transcoder and d.target_hook is None and target_hook is None:
            said["hook_name_out"] = proposed
    d.place.said = said
    return d
