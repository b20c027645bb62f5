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
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
    """The command of a run: 30 steps, a checkpoint every ten, an evaluation."""
    from tests.helpers.commands import TINY
    from tests.helpers.small_llm import SMALL

    length = ["train_tokens=5760", "checkpoint.every=1920", "checkpoint.keep=1", "hook=layers.0"]
    return ["train", *TINY, *SMALL, *length, "eval.tokens=1536", "eval.ce_tokens=0", f"name={name}"]


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


def _serve(folder: Path, words: list[str], fault: Fault | None, said: Path, log: Path) -> None:
    """In a process of its own: refuse what is to be refused, then run the command."""
    from tests.helpers import warm

    library = ctypes.CDLL(os.environ[LIBRARY])
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    place = os.fsencode(folder / "outputs")
    if fault is None:
        library.failing(place, -1, b"", ctypes.c_long(0), 0, 0, file)
    else:
        number = getattr(errno, fault.error)
        how = KINDS.index(fault.kind), fault.part.encode(), ctypes.c_long(fault.nth), number, fault.for_good
        library.failing(place, *how, file)
    warm._main(folder, tuple(words), dict(os.environ) | {"OMP_NUM_THREADS": "1"}, said, False)


def run(folder: Path, words: list[str], fault: Fault | None, log: Path) -> tuple[int | None, str]:
    """A command to its end: exit code (None: it had to be killed) and what it said on stderr."""
    from tests.helpers.warm import context

    with tempfile.TemporaryDirectory() as said:
        process = context().Process(target=_serve, args=(folder, words, fault, Path(said), log), daemon=True)
        process.start()
        process.join(END_S)
        hung = process.exitcode is None
        process.kill()
        process.join()
        err = Path(said, "stderr")
        return None if hung else process.exitcode, err.read_text() if err.exists() else ""


def calls(folder: Path) -> Counter[str]:
    """Run a command that is left alone, `alone`; how many calls of each kind it makes in its folder."""
    log = folder / "calls.log"
    code, err = run(folder, words("alone"), None, log)
    assert code == 0, err
    return Counter(line.split(" ", 1)[0] for line in log.read_text().splitlines())


def faults(counts: Counter[str], chance: random.Random) -> Iterator[Fault]:
    """One fault after the other, without end: kinds in turn, the place of the call and the rest by chance."""
    while True:
        for kind in KINDS:
            nth = chance.randint(1, max(counts[kind], 1))
            yield Fault(kind, nth, chance.choice(ERRORS), chance.random() < 0.4)


def left_behind(outputs: Path) -> list[str]:
    """What is not complete, or says that somebody still works."""
    found = [path for path in outputs.rglob(".*") if path.name.endswith(".tmp") or ".owner" in path.name]
    found += [path for path in outputs.glob(".*")]
    return sorted({str(path.relative_to(outputs)) for path in found})


def problems(folder: Path, name: str, fault: Fault, log: Path) -> tuple[list[str], dict[str, object]]:
    """What is wrong with how a run met a fault and went on after it, and what it said."""
    from tests.helpers.runs import results, same_weights

    outputs = folder / "outputs"
    run_folder, alone = outputs / name, outputs / "alone"
    code, err = run(folder, words(name), fault, log)
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
    code, err = run(folder, [*words(name), "resume=auto"], None, folder / "resumed.log")
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
    asked = parser.parse_args()
    if LIBRARY not in os.environ:
        again_with(compiled(Path(tempfile.mkdtemp())))
    from tests.helpers.small_llm import save_small_llm

    with tempfile.TemporaryDirectory() as place:
        folder = save_small_llm(Path(place).resolve())
        counts, began, bad = calls(folder), time.monotonic(), 0
        print(f"calls of a run left alone: {dict(counts)}", flush=True)
        given = [Fault(**each) for each in json.loads(asked.only)] if asked.only else None
        chosen = iter(given) if given else faults(counts, random.Random(asked.seed))
        for number, fault in zip(range(len(given) if given else asked.n), chosen, strict=False):
            log = folder / "fault.log"
            found, said = problems(folder, f"run_{number}", fault, log)
            bad += bool(found)
            hit = log.read_text().split("\n")[0]
            entry = asdict(fault) | {"hit": hit, "problems": found} | said
            if asked.out:
                with open(asked.out, "a", encoding="utf-8") as out:
                    out.write(json.dumps(entry) + "\n")
            if found:
                print(json.dumps(entry), flush=True)
        print(f"{number + 1} faults, {bad} with problems, {time.monotonic() - began:.0f} s", flush=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
