"""Break a copy of the code as tests/README.md says, and see that the tests named there fail.

    python tests/mutations.py [--only PATTERN] [--list] [--jobs 2]

The breakages are in mutations.txt. One counts as caught only if a test itself fails: not while it is
collected, not in a fixture, and not with an error that any careless edit would raise.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "tests" / "mutations.txt"
TABLE = ROOT / "tests" / "README.md"
COPIED = ("sae_dist", "conf", "slurm", "tests", "pyproject.toml")
LIMIT_S = 1800
SHOWN_LINES = 20
CARELESS = re.compile(
    r"\b(SyntaxError|IndentationError|ImportError|ModuleNotFoundError|NameError|UnboundLocalError|"
    r"AttributeError|TypeError)\b: "
)
"""Errors that any careless edit raises, and that are no sign of the bug that is meant."""
CAUGHT, MISSED, UNFIT = "caught", "NOT CAUGHT", "does not apply"


@dataclass
class Mutation:
    """A breakage: edits of `file` that make `tests` fail.

    Attributes:
        row: the first column of the table's row.
        file: relative to the project.
        tests: node ids relative to tests/, each with ` -k WORDS` after it if that narrows it.
        edits: texts that are in the file exactly once, and what to put in their place.
    """

    row: str
    file: str
    tests: list[str] = field(default_factory=list)
    edits: list[tuple[str, str]] = field(default_factory=list)

    def apply(self, root: Path) -> None:
        """Break the copy of the project at `root`.

        Raises:
            ValueError: a text is not there exactly once.
            SyntaxError: what comes of it is no Python.
        """
        path = root / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        for old, new in self.edits:
            if text.count(old) != 1:
                raise ValueError(f"{UNFIT}: {old.strip()!r} is {text.count(old)} times in {self.file}")
            text = text.replace(old, new)
        if path.suffix == ".py":
            compile(text, self.file, "exec")
        path.write_text(text, encoding="utf-8")


@dataclass
class Result:
    """The verdict on one mutation."""

    mutation: Mutation
    verdict: str
    seconds: float = 0.0


def read_mutations(text: str) -> list[Mutation]:
    """Return the mutations of a text in the format that its first block shows."""
    found: list[Mutation] = []
    row = before = ""
    _, _, *blocks = text.split("\n## ")
    for line in "\n## ".join(["", *blocks]).splitlines():
        sign, _, words = line.partition(" ")
        if sign == "##":
            row = words
        elif sign == "file":
            found.append(Mutation(row, words))
        elif sign == "test":
            found[-1].tests.append(words)
        elif sign == "-" and before == "-":
            old, _ = found[-1].edits[-1]
            found[-1].edits[-1] = (f"{old}\n{words}", "")
        elif sign == "-":
            found[-1].edits.append((words, ""))
        elif sign == "+":
            old, new = found[-1].edits[-1]
            found[-1].edits[-1] = (old, f"{new}\n{words}" if before == "+" else words)
        else:
            assert not line.strip(), f"{DATA.name}: {line}"
        before = sign
    return found


def table_rows(text: str) -> list[tuple[str, str]]:
    """Return both columns of every row of the table of known bugs in tests/README.md."""
    lines = text.split("## What would catch a known bug", 1)[1].split("\n## ", 1)[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")][2:]
    return [(row.strip(), tests.strip()) for row, tests in cells]


def copied(folder: Path) -> Path:
    """Return a copy of what tests need, in `folder`."""
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    return folder


@dataclass
class Outcome:
    """The end of a pytest run in a copy.

    code   the exit code; None: the run was ended after LIMIT_S
    cases  (test, "", "") for every test of the report, and (test, "failure" | "error" | "skipped", text) for
           each of these that the report has of it
    """

    code: int | None
    cases: list[tuple[str, str, str]]


def run_tests(root: Path, tests: Sequence[str]) -> Outcome:
    """Run tests in a copy, one after the other; a test with ` -k WORDS` must be the only one."""
    nodes, words = zip(*(test.partition(" -k ")[::2] for test in tests), strict=True)
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", ""]
    command += ["--junitxml=report.xml", f"--basetemp={root / 'basetemp'}", *(f"tests/{n}" for n in nodes)]
    command += ["-k", words[0]] if words[0] else []
    # No bytecode: a file changed within a second to another of its size would not be compiled again.
    own = {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    with open(root / "output.txt", "wb") as said:
        process = subprocess.Popen(
            command, cwd=root, env=os.environ | own, stdout=said, stderr=said, start_new_session=True
        )
        try:
            code: int | None = process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            # Ranks may outlive a pytest that was killed or has crashed.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            process.wait()
    report = root / "report.xml"
    return Outcome(code, list(_cases(report)) if report.is_file() else [])


def _cases(report: Path) -> Iterator[tuple[str, str, str]]:
    for case in ElementTree.parse(report).iter("testcase"):
        test = f"{case.get('classname', '').removeprefix('tests.').replace('.', '/')}.py::{case.get('name')}"
        ends = [each for each in case if each.tag in ("failure", "error", "skipped")]
        yield test, "", ""
        for each in ends:
            yield test, each.tag, f"{each.get('message', '')}\n{each.text or ''}"


def verdict(outcome: Outcome) -> str:
    """Return what the outcome in a broken copy says about the tests: CAUGHT, or why not."""
    ends = {end for _, end, _ in outcome.cases}
    if outcome.code is None:
        return f"{MISSED}: no end within {LIMIT_S} s"
    if not outcome.cases or "error" in ends or outcome.code not in (0, 1):
        return f"{MISSED}: pytest's exit code {outcome.code}, a test did not come to run"
    if outcome.code == 0:
        return f"{UNFIT}: skipped here" if "skipped" in ends else MISSED
    careless = [match[1] for _, end, text in outcome.cases if end and (match := CARELESS.search(text))]
    return f"{MISSED}: fails with {careless[0]}" if careless else CAUGHT


def play(mutation: Mutation, keep: Path | None) -> Result:
    """Break a copy, run the tests there, remove the copy; `keep`: a folder for what pytest printed."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        root = copied(Path(folder))
        try:
            mutation.apply(root)
        except (ValueError, SyntaxError) as error:
            return Result(mutation, str(error) if UNFIT in str(error) else f"{UNFIT}: {error}")
        found = verdict(run_tests(root, mutation.tests))
        if keep is not None:
            name = re.sub(r"\W+", "_", mutation.row)[:60]
            shutil.copy(root / "output.txt", keep / f"{name}_{id(mutation):x}.txt")
    return Result(mutation, found, time.monotonic() - began)


def fail_unbroken(tests: Sequence[str]) -> set[str]:
    """Return those of some tests that fail in a copy without a mutation, and print why."""
    with tempfile.TemporaryDirectory(prefix="unbroken-") as folder:
        root = copied(Path(folder))
        outcome = run_tests(root, tests)
        if outcome.code != 0:
            said = (root / "output.txt").read_text(errors="replace").splitlines()
            print("without a mutation:", *said[-SHOWN_LINES:], sep="\n  ", file=sys.stderr, flush=True)
    bad: set[str] = set()
    for test in tests:
        node = test.partition(" -k ")[0]
        ends = {end for case, end, _ in outcome.cases if case == node or case.startswith(f"{node}[")}
        if not ends or ends & {"failure", "error"}:
            bad.add(test)
    return bad


def unbroken(mutations: Sequence[Mutation], jobs: int) -> set[str]:
    """Return the tests of these mutations that fail without a mutation; each file of tests is run once."""
    tests = dict.fromkeys(test for mutation in mutations for test in mutation.tests)
    batches: dict[str, list[str]] = {}
    for test in tests:
        batches.setdefault(test if " -k " in test else test.partition("::")[0], []).append(test)
    with ThreadPoolExecutor(jobs) as pool:
        return set().union(*pool.map(fail_unbroken, batches.values()))


def play_all(mutations: Sequence[Mutation], jobs: int, bad: set[str], keep: Path | None) -> list[Result]:
    """Play every mutation, `jobs` at a time, and print each verdict as it comes.

    Args:
        bad: tests that fail without a mutation too, and so prove nothing.
    """

    def one(mutation: Mutation) -> Result:
        if bad.intersection(mutation.tests):
            return Result(mutation, f"{UNFIT}: the test fails without it")
        result = play(mutation, keep)
        print(f"{result.verdict} ({result.seconds:.0f} s): {mutation.row}", file=sys.stderr, flush=True)
        return result

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, mutations))


def formatted(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as a table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="a regular expression; searched in row, file and test")
    parser.add_argument("--list", action="store_true", help="print the mutations and stop")
    parser.add_argument("--jobs", type=int, default=1, help="mutations played at a time")
    parser.add_argument("--no-unbroken", action="store_true", help="do not run the tests unmutated first")
    parser.add_argument("--keep", type=Path, help="a folder for what pytest printed for each")
    asked = parser.parse_args()
    every = read_mutations(DATA.read_text(encoding="utf-8"))
    rows = {row for row, _ in table_rows(TABLE.read_text(encoding="utf-8"))}
    if rows != {mutation.row for mutation in every}:
        parser.error(f"{DATA.name} and the table differ: {sorted(rows ^ {m.row for m in every})}")
    looked = re.compile(asked.only, re.IGNORECASE)
    chosen = [m for m in every if looked.search("\n".join([m.row, m.file, *m.tests]))]
    if asked.list:
        print(formatted([["row", "file", "test"], *([m.row, m.file, ", ".join(m.tests)] for m in chosen)]))
        return 0
    if asked.keep is not None:
        asked.keep.mkdir(parents=True, exist_ok=True)
    bad = set() if asked.no_unbroken else unbroken(chosen, asked.jobs)
    results = play_all(chosen, asked.jobs, bad, asked.keep)
    lines = [["row", "file", "test", "result", "seconds"]]
    for result in results:
        found = result.mutation
        lines.append([found.row, found.file, ", ".join(found.tests), result.verdict, f"{result.seconds:.0f}"])
    print(formatted(lines))
    return 0 if all(result.verdict == CAUGHT for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
