"""What one stream saves: a grid of dictionaries beside the same dictionaries, each in a run of its own.

Both are real runs of `sae-dist train`, each in a process of its own, half of the single runs before the grid
and half after it. Seconds are those of training, from the first chunk to the last step.
"""

import csv
import json
import subprocess
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from sae_dist.core.errors import ConfigError, SaeDistError

ALLOWED = 1.1
"""How much more than its parts' share of the runs' parts a grid may cost."""


@dataclass(frozen=True)
class Saving:
    """Seconds of training: of the grid, of its runs alone, and what LLM and dictionaries took in each."""

    dictionaries: int
    grid_s: float
    alone_s: float
    llm_s: float
    trained_s: float

    @property
    def share(self) -> float:
        """Measured: the grid's time over that of the runs."""
        return self.grid_s / self.alone_s

    @property
    def expected(self) -> float:
        """(LLM + dictionaries) / (n LLM + dictionaries), with what the single runs took."""
        return (self.llm_s + self.trained_s) / (self.dictionaries * self.llm_s + self.trained_s)


def run_grid(folder: Path, words: list[str], *, dictionaries: int) -> str:
    """Measure, write grid.csv into `folder`; the result in words.

    Args:
        words: of `sae-dist train`, for every run.

    Raises:
        SaeDistError: a run failed.
    """
    if (folder / "grid_runs").exists():
        raise ConfigError(f"{folder / 'grid_runs'} exists; remove it, or choose another --folder")
    seeds = list(range(dictionaries))
    half = dictionaries // 2
    alone = [one_run(folder, f"alone_{seed}", [*words, f"sae.seed={seed}"]) for seed in seeds[:half]]
    grid = one_run(folder, "grid", [*words, f"grid.seed={seeds}".replace(" ", "")])
    alone += [one_run(folder, f"alone_{seed}", [*words, f"sae.seed={seed}"]) for seed in seeds[half:]]
    saving = Saving(
        dictionaries=dictionaries,
        grid_s=grid["seconds"],
        alone_s=sum(each["seconds"] for each in alone),
        llm_s=sum(each["stream_seconds"] for each in alone) / dictionaries,
        trained_s=sum(each["dictionary_seconds"] for each in alone),
    )
    with open(folder / "grid.csv", "w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow([*(field.name for field in fields(Saving)), "share", "expected"])
        rows.writerow([*astuple(saving), saving.share, saving.expected])
    return in_words(saving)


def one_run(folder: Path, name: str, words: list[str]) -> dict[str, float]:
    """Train in a process of its own; seconds of the whole, of its stream and of its first dictionary.

    Raises:
        SaeDistError: it failed.
    """
    output = folder / "grid_runs"
    settings = ["eval.tokens=0", "checkpoint.every=null", "metrics.wandb=off", "metrics.console=false"]
    command = [sys.executable, "-m", "sae_dist.cli", "train", *words, *settings]
    done = subprocess.run([*command, f"output={output}", f"name={name}"], capture_output=True, text=True)
    if done.returncode:
        raise SaeDistError(f"bench: {name} ended with code {done.returncode}: {done.stderr.strip()[-300:]}")
    run = output / name
    summaries = [run / "summary.json"] if name != "grid" else sorted(run.glob("*/summary.json"))
    found = json.loads(summaries[0].read_text(encoding="utf-8"))
    print(f"{name}: {found['tokens'] / found['tokens_per_second']:.0f} s", file=sys.stderr, flush=True)
    return {"seconds": found["tokens"] / found["tokens_per_second"]} | {
        key: found[key] for key in ("stream_seconds", "dictionary_seconds")
    }


def in_words(saving: Saving) -> str:
    """Two lines."""
    n = saving.dictionaries
    return (
        f"{n} dictionaries on one stream: {saving.grid_s:.0f} s; in {n} runs: {saving.alone_s:.0f} s; "
        f"the grid takes {saving.share:.3f} of them\n"
        f"LLM {saving.llm_s:.1f} s a run, dictionaries {saving.trained_s:.1f} s in all: "
        f"(LLM + dictionaries) / ({n} LLM + dictionaries) = {saving.expected:.3f}, "
        f"and {saving.share / saving.expected:.2f} times that was measured (at most {ALLOWED} is wanted)"
    )
