"""Makes run folders of dictionaries that other programs trained."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_dist.config.kinds import KINDS, SELECTED
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import EXPORT, IMPORTED, SUMMARY
from sae_dist.export.exported import ExportedSae
from sae_dist.export.formats import FORMATS
from sae_dist.export.names import format_of
from sae_dist.export.saelens import export_saelens


@dataclass(frozen=True)
class Imported:
    """A dictionary with the folder that it was read from."""

    source: Path
    sae: ExportedSae

    @classmethod
    def read(cls, folder: Path, name: str | None) -> "Imported":
        """Read a dictionary in one of the formats.

        Args:
            name: the format; None: the one whose files there are.

        Raises:
            ConfigError: a file, key or tensor is missing, transposed, or means another computation than here.
        """
        return cls(folder, FORMATS[name or format_of(folder)].read(folder))

    @property
    def columns(self) -> int:
        """Return the width of the activations that it is for, D, of a transcoder D + E."""
        return self.sae.width + (len(self.sae.b_dec_E) if self.sae.transcoder else 0)

    def says(self) -> dict[str, Any]:
        """Return keys of a run's config, as far as the dictionary and its metadata determine them."""
        sae, said = self.sae, self.sae.metadata
        kind = sae.kind
        nested = sae.trained_as == "matryoshka" and "matryoshka_prefixes" in said
        if sae.trained_as in KINDS and (sae.trained_as != "matryoshka" or nested):
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

    def write(self, run: Path) -> None:
        """Write the export and the summary of its run folder.

        Raises:
            SaeDistError: they could not be written.
        """
        export_saelens(run / EXPORT, self.sae)
        imported = {"status": IMPORTED, "imported_from": str(self.source.resolve())}
        write_json(run / SUMMARY, imported)
