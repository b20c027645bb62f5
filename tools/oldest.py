"""Run the tests that meet other libraries' errors with the oldest versions that pyproject.toml allows.

    python tools/oldest.py FOLDER [pytest's arguments]

The environment is made in FOLDER; torch is the newest, as its lower bound has no build for every Python.
"""

import re
import subprocess
import sys
import venv
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
TORCH = "torch==2.13.0"
# Without the extra `test`, whose dashboards need a newer W&B.
RUNNER = ("pytest", "pytest-xdist", "hypothesis")
TESTS = (
    "tests/unit/core/test_hub.py",
    "tests/unit/llm",
    "tests/unit/export",
    "tests/unit/tokens",
    "tests/unit/metrics/test_wandb.py",
    "tests/integration/test_exchange.py",
)


def lower_bounds() -> list[str]:
    """Return `name==version` of every dependency with a lower bound, but torch."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        named = tomllib.load(file)["project"]["dependencies"]
    bounds = (re.match(r"([\w.-]+)>=([\w.]+)", each) for each in named)
    return [f"{each[1]}=={each[2]}" for each in bounds if each and each[1] != "torch"]


def main() -> int:
    """Make the environment, install, run the tests; return their exit code."""
    folder = Path(sys.argv[1])
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    constraints = folder / "oldest.txt"
    constraints.write_text("\n".join(lower_bounds()) + "\n")
    print(constraints.read_text(), flush=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH], check=True)
    subprocess.run([*pip, "-c", str(constraints), "-e", f"{ROOT}[minilm]", *RUNNER], check=True)
    return subprocess.run([python, "-m", "pytest", "-q", *(sys.argv[2:] or TESTS)], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
