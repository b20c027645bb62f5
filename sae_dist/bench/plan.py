"""What a quality benchmark is made of: settings, presets, and the folder that holds it."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sae_dist.core.config import RunConfig
from sae_dist.core.errors import ConfigError

WORDS = ("ours", "saelens", "sparsify", "sparsify_adam", "dictionary_learning")
LANES = RunConfig().shuffle.lanes
CHUNK_ROWS = 128
"""Rows per chunk of our run: small, so that few rows lie unread ahead of the last one. The file is shuffled
as a whole, so this changes nothing else."""
PLAN = "plan.json"


@dataclass(frozen=True)
class Plan:
    """One benchmark. Counts are activations.

    Attributes:
        shapes: (latents, k) of each table.
        only: contestants, in the order of the tables.
        peer_python: interpreter of a peer, by its name.
    """

    folder: Path
    tokens: int
    shapes: tuple[tuple[int, int], ...]
    seeds: int
    batch: int = 2048
    test_rows: int = 120_000
    only: tuple[str, ...] = WORDS
    peer_python: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    llm: str = "minilm"
    hook: str = "encoder.layer.2"

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a latent gets AuxK: our default, for every contestant."""
        return min(10_000_000, max(self.tokens // 10, 1))


def hold_folder(plan: Plan) -> None:
    """Write down what the folder's data are made of, or check that they are the same.

    Raises:
        ConfigError: the folder holds a benchmark with other data.
    """
    made_of = {
        key: value
        for key, value in asdict(plan).items()
        if key in ("tokens", "batch", "test_rows", "llm", "hook", "device")
    }
    path = plan.folder / PLAN
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        for key, value in made_of.items():
            if before.get(key) != value:
                raise ConfigError(
                    f"{plan.folder} holds a benchmark with {key}={before.get(key)}, and this one has "
                    f"{key}={value}; choose another --folder"
                )
        return
    if plan.folder.exists() and (not plan.folder.is_dir() or not _ours(plan.folder)):
        raise ConfigError(f"{plan.folder} exists and is no benchmark; choose another --folder")
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, made_of)
    except OSError as error:
        raise ConfigError(
            f"--folder {plan.folder} cannot be written: {error.strerror}; choose another"
        ) from None


def _ours(folder: Path) -> bool:
    """Whether there is nothing in it but what `sae-dist bench peers` and `scaling` leave."""
    return all(each.name in ("peers", "scaling.csv") for each in folder.iterdir())


def write_json(path: Path, content: object) -> None:
    """Complete or absent."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
