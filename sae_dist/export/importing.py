"""Makes run folders of dictionaries that other programs trained."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

from sae_dist.config.kinds import KINDS, SELECTED
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import EXPORT, IMPORTED, SUMMARY
from sae_dist.export.exported import ExportedSae
from sae_dist.export.formats import FORMATS
from sae_dist.export.gemma_scope import load_gemma_scope, load_gemma_scope_2
from sae_dist.export.names import FILE_EACH, FILES, format_of
from sae_dist.export.saelens import export_saelens
from sae_dist.export.sound import AT_ONCE_BYTES, check_files, check_numbers, check_said

OF_THE_HOOK = (
    "hook_name",
    "hook_name_out",
    "hf_hook_name",
    "hf_hook_name_out",
    "model_class_name",
    "model_from_pretrained_kwargs",
)
READERS = {"gemma_scope": load_gemma_scope, "gemma_scope_2": load_gemma_scope_2}
"""Readers of formats that may not say whether a dictionary is a transcoder."""


@dataclass(frozen=True)
class Imported:
    """A dictionary with the folder that it was read from."""

    source: Path
    sae: ExportedSae

    @classmethod
    def read(
        cls, place: Path, name: str | None, transcoder: bool = False, verify: bool | None = True
    ) -> "Imported":
        """Read a dictionary in one of the formats.

        Args:
            place: its folder, or a file in it.
            name: the format; None: the one whose files there are.
            transcoder: it is one, where its format does not say.
            verify: read all of it, to check its files by their checksums, where there are any, and that its
                tensors hold numbers; None: if its files are small, see `export.sound`.

        Raises:
            ConfigError: a file, key or tensor is missing, transposed, damaged, or means another computation
                than here.
        """
        name = name or format_of(place)
        folder = place.parent if place.is_file() else place
        config, weights = FILES[name]
        if place.is_file() and name in FILE_EACH:
            weights = escape(place.name)
        files = sorted({file for each in (config, weights) for file in folder.glob(each)})
        if verify is None:
            verify = sum(file.stat().st_size for file in files) <= AT_ONCE_BYTES
        if verify:
            check_files(folder, files)
        if name not in FILE_EACH:
            place = folder
        sae = READERS[name](place, transcoder) if name in READERS else FORMATS[name].read(place)
        check_said(next(iter(sorted(folder.glob(config))), place), sae)
        if verify:
            check_numbers(place, sae)
        return cls(place, sae)

    @property
    def columns(self) -> int:
        """Return the width of the activations that it is for, D, of a transcoder D + E."""
        return self.sae.width + (len(self.sae.b_dec_E) if self.sae.transcoder else 0)

    def says(self) -> dict[str, Any]:
        """Return keys of a run's config, as far as the dictionary and its metadata determine them."""
        sae, said = self.sae, self.sae.metadata
        kind = sae.kind
        nested = sae.trained_as != "matryoshka" or "matryoshka_prefixes" in said
        # A file may name the training without what it takes to go on with it.
        has_k = sae.trained_as not in SELECTED or sae.k is not None or "training_k" in said
        if sae.trained_as in KINDS and nested and has_k:
            kind = sae.trained_as
        found: dict[str, Any] = {"sae": kind, "sae.num_latents": sae.num_latents}
        if kind in SELECTED:
            found["sae.k"] = sae.k if sae.k is not None else said.get("training_k")
        if kind == "matryoshka":
            found["sae.prefixes"] = [size / sae.num_latents for size in said["matryoshka_prefixes"]]
        if sae.W_skip_ED is not None:
            found["sae.skip"] = True
        found["llm.name"] = said.get("model_name")
        found["hook"] = said.get("hf_hook_name") or said.get("hook_name")
        found["tokens.context"] = said.get("context_size")
        if sae.transcoder:
            found["target_hook"] = said.get("hf_hook_name_out") or said.get("hook_name_out")
        return {key: value for key, value in found.items() if value is not None}

    def write(self, run: Path, origin: Mapping[str, Any], given: Set[str]) -> None:
        """Write the export and the summary of its run folder.

        Args:
            origin: metadata of a dictionary of the run's model and hook.
            given: the keys of the config that the user set; metadata from the files stands for the others.

        Raises:
            SaeDistError: they could not be written.
        """
        self.sae.metadata = with_origin(self.sae.metadata, origin, given)
        export_saelens(run / EXPORT, self.sae)
        imported = {"status": IMPORTED, "imported_from": str(self.source.resolve())}
        write_json(run / SUMMARY, imported)


def with_origin(metadata: Mapping[str, Any], origin: Mapping[str, Any], given: Set[str]) -> dict[str, Any]:
    """Return a dictionary's metadata, with what the user gave and what the files do not say."""
    found = dict(metadata)
    if "model_name" in origin and ("llm.name" in given or "model_name" not in found):
        found["model_name"] = origin["model_name"]
    if given & {"hook", "target_hook"} or "hook_name" not in found:
        # In whose words a hook is named depends on the class of the model.
        for key in OF_THE_HOOK:
            found.pop(key, None)
        found |= {key: origin[key] for key in OF_THE_HOOK if key in origin}
    if "context_size" in origin and "tokens.context" in given:
        found["context_size"] = origin["context_size"]
    return found
