"""docs/tour.ipynb: it is stored with the outputs of every cell, and every cell runs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "tour.ipynb"
MACHINE = re.compile(r"/(work|home|root|tmp|usr|opt)/|site-packages|\.cache")
LARGEST_BYTES = 500_000


def problems(notebook: dict) -> list[str]:
    """What is wrong with the stored outputs of a notebook."""
    found = []
    cells = [each for each in notebook["cells"] if each["cell_type"] == "code"]
    for number, cell in enumerate(cells, start=1):
        outputs = cell["outputs"]
        if cell["execution_count"] != number:
            found.append(f"cell {number} was not executed in its order")
        if not outputs:
            found.append(f"cell {number} has no output")
        if any(each["output_type"] == "error" for each in outputs):
            found.append(f"cell {number} raised")
        if any(each.get("name") == "stderr" for each in outputs):
            found.append(f"cell {number} has stderr")
        if MACHINE.search(json.dumps(outputs)):
            found.append(f"cell {number} names a path of a machine")
    return found


def test_the_stored_notebook_has_its_outputs():
    assert problems(json.loads(NOTEBOOK.read_text())) == []
    assert NOTEBOOK.stat().st_size < LARGEST_BYTES


def test_what_is_wrong_shows():
    printed = {"output_type": "stream", "name": "stdout", "text": ["1"]}
    wrong = [
        (1, []),
        (9, [printed]),
        (3, [{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}]),
        (4, [printed | {"text": ["/home/me"]}, printed | {"name": "stderr"}]),
    ]
    cells = [{"cell_type": "code", "execution_count": n, "outputs": outputs} for n, outputs in wrong]
    assert [each.split(" ", 2)[1] for each in problems({"cells": cells})] == list("12344")


@pytest.mark.long
def test_every_cell_runs(tmp_path):
    pytest.importorskip("nbclient", reason="needs the extra `test`")
    target = tmp_path / "tour.ipynb"
    tool = [sys.executable, str(ROOT / "tools" / "tour.py"), str(target)]
    done = subprocess.run(tool, capture_output=True, text=True, timeout=1800, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    ours, stored = (json.loads(each.read_text()) for each in (target, NOTEBOOK))
    assert problems(ours) == []
    assert [each["source"] for each in ours["cells"]] == [each["source"] for each in stored["cells"]]
