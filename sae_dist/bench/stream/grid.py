"""The time that one stream saves: a grid of dictionaries beside the same dictionaries in single runs.

Both are real runs of `sae-dist train`, each in a process of its own, half of the single runs before the grid
and half after it. Seconds are those of training, from the first chunk to the last step.
"""

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sae_dist.core.errors import SaeDistError
from sae_dist.core.run_folder import SUMMARY, read_summary

QUIET = ("eval.tokens=0", "checkpoint.every=null", "metrics.wandb=off", "metrics.console=false")


@dataclass(frozen=True)
class Saving:
    """The seconds of training: of the grid, of single runs, and of LLM and dictionaries in those."""

    dictionaries: int
    grid_s: float
    alone_s: float
    llm_s: float
    trained_s: float

    @property
    def share(self) -> float:
        """The grid's measured time as a share of that of the single runs."""
        return self.grid_s / self.alone_s

    @property
    def expected(self) -> float:
        """The share expected from the single runs: (LLM + dictionaries) / (n LLM + dictionaries)."""
        return (self.llm_s + self.trained_s) / (self.dictionaries * self.llm_s + self.trained_s)


def time_grid(words: list[str], dictionaries: int) -> Saving:
    """Train as many dictionaries in a grid and alone.

    Args:
        words: arguments of `sae-dist train` for every run; the dictionaries differ in their seed.

    Raises:
        SaeDistError: a run failed.
    """
    seeds = list(range(dictionaries))
    half = dictionaries // 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = [one_run(folder, f"alone_{seed}", [*words, f"sae.seed={seed}"]) for seed in seeds[:half]]
        grid = one_run(folder, "grid", [*words, f"grid.seed={seeds}".replace(" ", "")])
        alone += [one_run(folder, f"alone_{seed}", [*words, f"sae.seed={seed}"]) for seed in seeds[half:]]
    return Saving(
        dictionaries=dictionaries,
        grid_s=grid["seconds"],
        alone_s=sum(each["seconds"] for each in alone),
        llm_s=sum(each["stream_seconds"] for each in alone) / dictionaries,
        trained_s=sum(each["dictionary_seconds"] for each in alone),
    )


def one_run(folder: Path, name: str, words: list[str]) -> dict[str, float]:
    """Train in a process of its own; return seconds in all, of its stream, of its only or first dictionary.

    Raises:
        SaeDistError: it failed.
    """
    command = [sys.executable, "-m", "sae_dist.cli", "train", *words, *QUIET]
    done = subprocess.run([*command, f"output='{folder}'", f"name={name}"], capture_output=True, text=True)
    if done.returncode:
        raise SaeDistError(f"bench: {name} ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    run = folder / name
    found = read_summary(run if name != "grid" else min(run.glob(f"*/{SUMMARY}")).parent)
    return {"seconds": found["tokens"] / found["tokens_per_second"]} | {
        key: found[key] for key in ("stream_seconds", "dictionary_seconds")
    }
