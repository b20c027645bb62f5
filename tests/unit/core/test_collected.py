"""No folder's name hides tests from the README's command, or a file from the linter."""

import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.order import LONGEST

ROOT = Path(__file__).parents[3]


def lines(*command: str) -> list[str]:
    """What a command prints in the project's folder."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout.splitlines()


def test_no_folder_of_tests_has_a_name_that_is_left_out(pytestconfig):
    for path in (ROOT / "tests").rglob("test_*.py"):
        parts = path.relative_to(ROOT).parts
        left_out = [each for each in pytestconfig.getini("norecursedirs") if fnmatch.filter(parts, each)]
        assert not left_out, f"{path}: pytest enters no folder named {left_out}"


def test_the_files_that_come_first_are_there():
    assert [name for name in LONGEST if not (ROOT / "tests" / name).is_file()] == []


@pytest.mark.long
def test_every_file_of_tests_is_collected():
    """By `pytest -q`, and by `pytest -q -m long`, which share them out."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--collect-only", "-m", ""]
    found = {line.split("::")[0] for line in lines(*command) if "::" in line}
    assert found == {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}


def test_the_linter_sees_every_file():
    pytest.importorskip("ruff", reason="ruff is not installed")
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    git = ("git", "-c", f"safe.directory={ROOT}", "ls-files", "*.py")
    tracked = {line for line in lines(*git) if (ROOT / line).exists()}
    ruff = (sys.executable, "-m", "ruff", "check", "--show-files")
    shown = {Path(line).relative_to(ROOT).as_posix() for line in lines(*ruff)}
    assert tracked and tracked <= shown
