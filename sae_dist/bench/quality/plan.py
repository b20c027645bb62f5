"""The settings of a quality benchmark, its outcomes, and the folder that holds it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_dist.config.rules.sharing import DEFAULT_LANES
from sae_dist.core.errors import ConfigError

WORDS = ("ours", "saelens", "sparsify", "sparsify_adam", "dictionary_learning")
LANES = DEFAULT_LANES
CHUNK_ROWS = 128
"""Rows per chunk of our run: small, so that few rows lie unread ahead of the last one. The file is shuffled
as a whole, so this changes nothing else."""


@dataclass(frozen=True)
class QualityPlan:
    """The settings of one quality benchmark. Counts are activations.

    Attributes:
        shapes: (latents, k) of each table.
        only: contestants, in the order of the tables.
        peer_python: interpreter of a peer, by its name.
        lr: one learning rate for all, instead of a sweep for each.
        refine: learning rates between the best of the grid and its neighbours are tried too.
        trials: where in the folder trials live; reports are `<report>.md` and so on.
    """

    folder: Path
    tokens: int
    shapes: tuple[tuple[int, int], ...]
    seeds: int
    batch: int = 2048
    test_rows: int = 120_000
    only: tuple[str, ...] = WORDS
    peer_python: dict[str, str] = field(default_factory=dict)
    lr: float | None = None
    refine: bool = False
    device: str = "cpu"
    trials: str = "trials"
    report: str = "results"
    llm: str = "minilm"
    hook: str = "encoder.layer.2"

    @property
    def steps(self) -> int:
        return self.tokens // self.batch

    @property
    def dead_after(self) -> int:
        """Tokens without firing after which a latent gets AuxK: our default, for every contestant."""
        return min(10_000_000, max(self.tokens // 10, 1))


@dataclass
class Outcome:
    """The results of one contestant at one shape.

    Attributes:
        trials: every result of the sweep and of the seeds.
        error: why there are no more trials; None: nothing failed.
    """

    contestant: str
    label: str
    latents: int
    k: int
    trials: list[dict[str, Any]] = field(default_factory=list)
    best_lr: float | None = None
    bracketed: bool = False
    error: str | None = None

    @property
    def at_best(self) -> list[dict[str, Any]]:
        """The seeds at the best learning rate."""
        return [each for each in self.trials if each["lr"] == self.best_lr and each["fvu"] is not None]


def make_bench_folder(folder: Path) -> None:
    """Make the folder of a benchmark.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--folder: {folder} cannot be made: {error.strerror}; choose another --folder"
        ) from None
