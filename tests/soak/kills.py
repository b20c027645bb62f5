"""Kills random ranks of small runs at random moments until each ends, and compares it with one left alone.

    python tests/soak/kills.py --n 200

Kills go on from where an earlier call in the same --folder stopped. A run that does not end stops
this script with an error; one whose loss curve or final weights differ in any bit from those of the run left
alone counts as diverged.
"""

import argparse
import json
import random
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.helpers.commands import TINY, warm  # noqa: E402
from tests.helpers.runs import results, same_weights  # noqa: E402
from tests.helpers.small_llm import SMALL, save_small_llm  # noqa: E402
from tests.helpers.warm import Command  # noqa: E402

RUN = [
    *SMALL,
    "train_tokens=14400",
    "checkpoint.every=960",
    "hook=layers.0",
    "topology.producers=1",
    "topology.shard=2",
]
RANKS = 3
END_S, GRACE_S = 300, 3


def words(name: str) -> list[str]:
    """The command of a run: a producer and two consumers, 75 steps, a checkpoint every five."""
    return ["train", *TINY, *RUN, f"name={name}", "resume=auto"]


def difference(folder: Path, name: str, reference: str) -> str | None:
    """What of a run differs from the one left alone; None: not a bit."""
    run, alone = folder / "outputs" / name, folder / "outputs" / reference
    if results(run) != results(alone):
        return "loss curve"
    return None if same_weights(run, alone) else "weights"


def left_alone(folder: Path, name: str) -> float:
    """The run that nobody kills; how long it took, once it has been measured."""
    known = folder / f"{name}.json"
    if not known.exists():
        save_small_llm(folder)
        # The first process of all waits for imports that no other one does: kills would come after most ends.
        assert warm(folder, "--version").returncode == 0
        began = time.monotonic()
        done = warm(folder, *words(name), ranks=RANKS)
        assert done.returncode == 0, done.stderr
        known.write_text(json.dumps({"seconds": time.monotonic() - began}))
    return json.loads(known.read_text())["seconds"]


def killed(folder: Path, name: str, chance: random.Random, seconds: float, most: int) -> Iterator[int]:
    """Start a run again and again, and kill a random rank of it; yields the rank, until the run ends well.

    Args:
        seconds: kills come within them, measured from the start.
        most: after so many kills the run is left alone.
    """
    kills = 0
    while True:
        process = Command(folder, *words(name), ranks=RANKS)
        victim, until = chance.randrange(RANKS), time.monotonic() + chance.uniform(0, seconds)
        while kills < most and time.monotonic() < until and process.poll() is None:
            time.sleep(0.005)
        kill = kills < most and process.processes[victim].is_alive()
        if kill:
            process.processes[victim].kill()
        # Ranks that wait for one that never came are ended by their launcher.
        _, err = process.communicate(timeout=END_S, grace=GRACE_S)
        if process.poll() == 0:
            return
        assert kill and process.processes[victim].exitcode == -signal.SIGKILL, err
        kills += 1
        yield victim


@contextmanager
def journal(path: Path) -> Iterator[Any]:
    """A file of one JSON object per line, and a function that adds one."""
    with open(path, "a", encoding="utf-8") as file:

        def note(**entry: Any) -> None:
            file.write(json.dumps(entry) + "\n")
            file.flush()

        yield note


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="kills in all")
    parser.add_argument("--folder", type=Path, default=Path("outputs/soak"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="begin no further run after so long")
    asked = parser.parse_args()
    folder, began = asked.folder.resolve(), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "kills.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    kills = sum("victim" in entry for entry in done)
    ended = [entry for entry in done if "differs" in entry]
    seconds = left_alone(folder, "alone")
    with journal(path) as note:
        while kills < asked.n and (asked.minutes is None or time.monotonic() - began < 60 * asked.minutes):
            name = f"run_{len(ended):04d}"
            chance = random.Random(f"{asked.seed} {name} {kills}")
            for victim in killed(folder, name, chance, seconds, asked.n - kills):
                kills += 1
                note(run=name, victim=victim)
            entry = {"run": name, "differs": difference(folder, name, "alone")}
            note(**entry)
            ended.append(entry)
            print(
                f"{kills} kills of {asked.n}, {len(ended)} runs, last: {entry['differs'] or 'same'}",
                flush=True,
            )
    bad = [entry for entry in ended if entry["differs"]]
    print(f"{kills} kills, {len(ended)} runs ended, {len(ended) - len(bad)} bitwise the run left alone")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
