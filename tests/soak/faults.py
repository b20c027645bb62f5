"""A small run whose files fail: calls of the system are refused one after another, and the run goes on after.

    python tests/soak/faults.py --n 200

`failing.c` is compiled, and loaded before every other library: what it refuses reaches whatever writes, also
within libraries. A run that is left alone shows which calls there are. Then each fault has a run of its own:
the nth call of a kind fails, once or from there on, by an error of the system. That run ends well or with one
line, and the same command with resume=auto then leaves what the run left alone has left, bit for bit, and
nothing half written.
"""

import argparse
import ctypes
import errno
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__)
sys.path.insert(0, str(HERE.parents[2]))

KINDS = ("open", "write", "fsync", "rename", "mkdir")
ERRORS = ("ENOSPC", "EIO", "EROFS", "EDQUOT")
END_S = 240.0
LIBRARY = "SAE_DIST_TEST_FAILING"


@dataclass(frozen=True)
class Fault:
    """The nth call of a kind whose path has `part` fails, alone or with all that follow."""

    kind: str
    nth: int
    error: str
    for_good: bool
    part: str = ""


def words(name: str) -> list[str]:
    """The command of a run: 12 steps on a file of activations, a checkpoint every four, an evaluation."""
    run = [
        "activations=file",
        "activations.path=rows.npy",
        "batch=64",
        "sae.num_latents=64",
        "sae.k=4",
        "sae.dead_after=100",
    ]
    run += ["train_tokens=768", "checkpoint.every=256", "checkpoint.keep=1", "shuffle.lanes=8"]
    run += ["shuffle.chunk_rows=16", "eval.tokens=256", "metrics.every=1", "metrics.wandb=off"]
    return ["train", *run, f"name={name}"]


def compiled(folder: Path) -> Path:
    """The library, compiled by cc."""
    library = folder / "failing.so"
    source = str(HERE.with_name("failing.c"))
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), source, "-ldl"], check=True)
    return library


def again_with(library: Path) -> None:
    """Run this program once more, with the library before all others."""
    environment = os.environ | {"LD_PRELOAD": str(library), LIBRARY: str(library)}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def refuse(folder: bytes, fault: Fault | None, rank: int, log: Path) -> None:
    """In a process of the run, if it is this rank: let calls fail in a folder, or else write them down."""
    if os.environ.get("RANK", "0") != str(rank):
        return
    library = ctypes.CDLL(os.environ[LIBRARY])
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    if fault is None:
        library.failing(folder, -1, b"", ctypes.c_long(0), 0, 0, file)
    else:
        number = getattr(errno, fault.error)
        how = KINDS.index(fault.kind), fault.part.encode(), ctypes.c_long(fault.nth), number, fault.for_good
        library.failing(folder, *how, file)


@dataclass(frozen=True)
class Place:
    """Where runs are made, by how many ranks, and which of these the faults hit."""

    folder: Path
    ranks: int
    victim: int

    def run(self, words: list[str], fault: Fault | None, log: Path) -> tuple[int | None, str]:
        """Run a command to its end: its exit code (None: it hung), and what it said on stderr."""
        from tests.helpers.warm import Command

        outputs = os.fsencode(self.folder / "outputs")
        words = [*words, f"topology.shard={self.ranks}"]
        before = partial(refuse, outputs, fault, self.victim, log)
        command = Command(self.folder, *words, ranks=self.ranks, before=before)
        try:
            _, err = command.communicate(END_S)
        except AssertionError as error:
            return None, str(error)
        # One that waits for a rank that has gone is killed, as by a launcher.
        codes = [process.exitcode for process in command.processes]
        return next((code for code in codes if code not in (0, -signal.SIGKILL)), 0), err

    def calls(self) -> Counter[str]:
        """Run a command that is left alone, `alone`; how many calls of each kind it makes in its folder."""
        log = self.folder / "calls.log"
        code, err = self.run(words("alone"), None, log)
        assert code == 0, err
        return Counter(line.split(" ", 1)[0] for line in log.read_text().splitlines())


def faults(counts: Counter[str], chance: random.Random) -> Iterator[Fault]:
    """Faults without end: every call of the run once, in rounds; errors in turn, two of five for good."""
    while True:
        places = [(kind, nth) for kind in KINDS for nth in range(1, counts[kind] + 1)]
        chance.shuffle(places)
        for number, (kind, nth) in enumerate(places):
            yield Fault(kind, nth, ERRORS[number % len(ERRORS)], chance.random() < 0.4)


def left_behind(outputs: Path) -> list[str]:
    """What is not complete, or says that somebody still works."""
    found = [path for path in outputs.rglob(".*") if ".tmp" in path.name or ".owner" in path.name]
    found += [path for path in outputs.glob(".*")]
    return sorted({str(path.relative_to(outputs)) for path in found})


def problems(place: Place, name: str, fault: Fault, log: Path) -> tuple[list[str], dict[str, object]]:
    """What is wrong with how a run met a fault and went on after it, and what it said."""
    from tests.helpers.runs import results, same_weights

    outputs = place.folder / "outputs"
    run_folder, alone = outputs / name, outputs / "alone"
    code, err = place.run(words(name), fault, log)
    lines = [line for line in err.splitlines() if line.startswith("sae-dist: error:")]
    logs = "".join(path.read_text() for path in run_folder.glob("logs/*"))
    found = []
    if code is None:
        found.append("it hangs")
    if "Traceback" in err + logs:
        found.append("a traceback")
    if len(lines) != (0 if code == 0 else 1) or code not in (0, 1, 2):
        found.append(f"exit code {code} and {len(lines)} lines of errors")
    if code == 2 and run_folder.exists():
        found.append("exit code 2, and the folder is there")
    if any("EIO" == fault.error and "free" in line for line in lines):
        found.append("EIO is told as lack of space")
    said: dict[str, object] = {"code": code, "line": lines[0] if lines else "", "err": err if found else ""}
    code, err = place.run([*words(name), "resume=auto"], None, place.folder / "resumed.log")
    if code != 0:
        found.append(f"resume ends with {code}: {err[-500:]}")
    else:
        if results(run_folder) != results(alone):
            found.append("other metrics")
        if not same_weights(run_folder, alone):
            found.append("other weights")
        if json.loads((run_folder / "summary.json").read_text())["status"] != "finished":
            found.append("it is not finished")
        if rest := left_behind(outputs):
            found.append(f"left behind: {', '.join(rest)}")
    shutil.rmtree(run_folder, ignore_errors=True)
    return found, said


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n", type=int, default=200, help="faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a file of one JSON object per fault")
    parser.add_argument("--only", help="faults as a JSON list")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--victim", type=int, default=0, help="the rank that faults hit")
    asked = parser.parse_args()
    if LIBRARY not in os.environ:
        again_with(compiled(Path(tempfile.mkdtemp())))
    try:
        bad = try_all(asked)
    finally:
        shutil.rmtree(Path(os.environ[LIBRARY]).parent)
        sys.stdout.flush()
    # At once: with a library before all others Triton complains at an ordinary end.
    os._exit(bad > 0)


def try_all(asked: argparse.Namespace) -> int:
    """Meet every fault that was asked for, and print those that were not met well; how many these are."""
    import numpy

    given = [Fault(**each) for each in json.loads(asked.only)] if asked.only else None
    number, bad, began = 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        place = Place(Path(name).resolve(), asked.ranks, asked.victim)
        rows = numpy.random.default_rng(0).normal(size=(2048, 16)).astype("float32")
        numpy.save(place.folder / "rows.npy", rows)
        counts = place.calls()
        print(f"calls of a run left alone: {dict(counts)}", flush=True)
        chosen = given or itertools.islice(faults(counts, random.Random(asked.seed)), asked.n)
        for number, fault in enumerate(chosen, start=1):
            log = place.folder / "fault.log"
            log.unlink(missing_ok=True)
            found, said = problems(place, f"run_{number}", fault, log)
            bad += bool(found)
            hit = log.read_text().split("\n")[0] if log.exists() else ""
            entry = asdict(fault) | {"hit": hit, "problems": found} | said
            if asked.out:
                with open(asked.out, "a", encoding="utf-8") as out:
                    out.write(json.dumps(entry) + "\n")
            if found:
                print(json.dumps(entry), flush=True)
    print(f"{number} faults, {bad} with problems, {time.monotonic() - began:.0f} s", flush=True)
    return bad


if __name__ == "__main__":
    main()
