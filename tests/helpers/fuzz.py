"""Fuzzing of everything that reads a file: mutated inputs end in success or in one line, in short time.

    python -m tests.helpers.fuzz READER|all [--inputs 10000] [--first 0]

An input is a function of the reader's name and its number, so `--first N --inputs 1` reads input N again.
"""

import argparse
import faulthandler
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from sae_dist.core.errors import SaeDistError
from tests.helpers.fuzz_readers import KEPT, READERS, Reader
from tests.helpers.mutated import mutated

LIMIT_S, HANGS_S = 2.0, 60
LIMIT_BYTES = 500 << 20
LONGEST_SAID = 2100
SHOWN = 20


def broken_by(reader: Reader, folder: Path) -> str | None:
    """Read a folder; return what is wrong with how that went, None: nothing."""
    before = time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(folder)
        said = ""
    except SaeDistError as error:
        said = " ".join(str(error).split())
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)
        place = next((each for each in reversed(where) if "sae_dist" in each.filename), where[-1])
        return f"{type(error).__name__}: {str(error)[:150]} ({place.filename}:{place.lineno})"
    took = time.process_time() - before
    if took > LIMIT_S:
        return f"{took:.1f} s"
    if "more memory than there is" in said:
        return said[:200]
    return f"a line of {len(said)} signs" if len(said) > LONGEST_SAID else None


def fuzz(
    name: str, first: int, inputs: int, folder: Path
) -> tuple[int, list[tuple[int, str]], tuple[float, int]]:
    """Read those of KEPT, and inputs from a number on.

    Returns:
        How many, what went wrong with which, and the slowest: its seconds of processor time and its number.
    """
    reader = READERS[name]
    reader.make(folder)
    reader.read(folder)  # as it is, it is sound
    files = sorted(each for pattern in reader.files for each in folder.glob(pattern))
    assert files, name
    contents = {file: file.read_bytes() for file in files}
    failures, slowest = [], (0.0, -1)
    numbers = [*KEPT.get(name, ()), *range(first, first + inputs)]
    for number in numbers:
        draw = random.Random(f"{name} {number}")
        file = draw.choice(files)
        faulthandler.dump_traceback_later(HANGS_S, exit=True)
        file.write_bytes(mutated(file.name, contents[file], draw))
        reader.after(folder, draw)
        before = time.process_time()
        if (problem := broken_by(reader, folder)) is not None:
            failures.append((number, problem))
        slowest = max(slowest, (time.process_time() - before, number))
        for each, content in contents.items():
            each.write_bytes(content)
    faulthandler.cancel_dump_traceback_later()
    return len(numbers), failures, slowest


def limit_memory() -> None:
    """Let this process take no more than `LIMIT_BYTES` above what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + LIMIT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def main() -> int:
    """Fuzz the readers that are named; 1: an input was not read as it should."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("readers", nargs="+", choices=[*READERS, "all"])
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    failed = 0
    names = list(READERS) if "all" in asked.readers else asked.readers
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        begin = time.process_time()
        try:
            READERS[name].make(folder)
            broken_by(READERS[name], folder)  # imports what it needs, before memory is limited
            limit_memory()
            read, failures, (longest, which) = fuzz(name, asked.first, asked.inputs, folder)
        finally:
            shutil.rmtree(folder)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        took = time.process_time() - begin
        right = f"{read - len(failures):6} of {read}, {took:.1f} s of processor time"
        print(f"{name:24} {right}; the slowest {longest:.2f} s (input {which})", flush=True)
        for number, problem in failures[:SHOWN]:
            print(f"    input {number}: {problem}")
        failed += len(failures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
