"""The names that other tools give a model, a hook and a dictionary, from an atlas and its export."""

import re
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.schema import MANIFEST
from sae_dist.core.files import read_json
from sae_dist.core.run_folder import EXPORT

SAE_CONFIG = "cfg.json"


@dataclass(frozen=True)
class Names:
    """The words and numbers that an atlas is of.

    Attributes:
        model: the last part of the model's name; `model_path` the whole.
        layer: the number of the layer of the hook; 0: the hook names none.
        hook: as the export names it, in the words of TransformerLens or of the model.
        set: of the dictionary: the name of its run.
        dataset: what it was trained on.
        date: when the atlas was complete, in UTC.
    """

    model: str
    model_path: str
    layer: int
    hook: str
    set: str
    dataset: str
    date: str

    @property
    def source(self) -> str:
        """The layer and the set, as Neuronpedia joins them."""
        return f"{self.layer}-{self.set}"


def names_of(atlas: Atlas) -> Names:
    """Return the names of an atlas; those that other tools use in paths and addresses are plain.

    Raises:
        ConfigError: the export's description is damaged.
    """
    run = atlas.folder.parent
    said: dict[str, Any] = (read_json(run / EXPORT / SAE_CONFIG) or {}).get("metadata") or {}
    model, hook = str(atlas.facts["model"]), str(atlas.facts["hook"])
    found = re.search(r"(?:^|\.)(\d+)(?:[.:]|$)", hook)
    made = datetime.fromtimestamp((atlas.folder / MANIFEST).stat().st_mtime, timezone.utc)
    return Names(
        model=plain(Path(model).name),
        model_path=model,
        layer=int(found[1]) if found else 0,
        hook=str(said.get("hook_name") or hook),
        set=plain(run.resolve().name),
        dataset=str(said.get("dataset_path") or atlas.facts["text"]),
        date=made.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    )


def plain(name: str) -> str:
    """Return a name in letters, digits, dots, dashes and underscores, at least one."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "unnamed"


def hook_folder(hook: str) -> str:
    """Return a hook as the name of a folder: the module that it is of."""
    return plain(hook.partition(":")[0])
