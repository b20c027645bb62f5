"""The order of the files of tests: a worker takes a whole file, and the next one when it is done."""

from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LONGEST = (
    "integration/test_slurm.py",
    "kernels/test_compile.py",
    "unit/optim/test_optim.py",
    "integration/test_tour.py",
    "integration/test_faults.py",
    "integration/test_bench.py",
    "integration/test_resume.py",
    "parity/test_world_size.py",
    "integration/test_hosts.py",
    "unit/llm/test_llm_compiled.py",
    "integration/test_architectures.py",
    "integration/test_quality.py",
    "integration/test_saelens_evals.py",
    "integration/test_torchrun.py",
    "integration/test_owners.py",
)
"""The files whose long tests take minutes: they begin first, so that none is alone at the end."""


def longest_first(items: list[pytest.Item]) -> None:
    """Move the tests of these files to the front; the order is otherwise kept."""
    places = {TESTS / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
