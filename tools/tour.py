"""Execute docs/tour.ipynb in an empty folder, and store it with its outputs: python tools/tour.py [TARGET].

What is printed on stderr, such as progress, is not stored. Needs the extra `test`.
"""

import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"
CELL_S = 900


def executed(notebook: nbformat.NotebookNode, folder: str) -> nbformat.NotebookNode:
    """Execute every cell in a folder; one that raises ends it with an exception."""
    where = {"metadata": {"path": folder}}
    client = NotebookClient(notebook, timeout=CELL_S, coalesce_streams=True, resources=where)
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [each for each in cell.outputs if each.get("name") != "stderr"]
    notebook.metadata = {key: notebook.metadata[key] for key in ("kernelspec",)}
    return notebook


def main() -> None:
    """Execute the notebook of the documentation, and write the target."""
    # The commands of this environment, whether it is activated or not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else NOTEBOOK
    with tempfile.TemporaryDirectory() as folder:
        found = executed(nbformat.read(NOTEBOOK, as_version=4), folder)
    nbformat.write(found, target)


if __name__ == "__main__":
    main()
