"""No pickle is read anywhere in the package: not from a file, and not from another process."""

import ast
from pathlib import Path

import pytest

from tests.helpers.pickles import refuse_pickles

PACKAGE = Path(__file__).parents[3] / "sae_dist"
COLLECTIVES = {
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
    "send_object_list",
    "recv_object_list",
}
READERS = {"dill", "cloudpickle", "joblib", "shelve", "marshal"}
ONLY_WITH = {"torch.load": ("weights_only", True), "dcp.load": ("no_dist", True)}
"""What reads pickles unless a word says otherwise; numpy's `load` does not, unless a word says so."""
NEVER = {"dcp.save", "dcp.async_save", "pickle.load", "pickle.loads", "pickle.Unpickler"}


def pickles(source: str) -> list[str]:
    """What of a file's source reads pickles, or might."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [getattr(node, "module", None) or "", *names]
            found += [each for each in modules if each.split(".")[0] in READERS]
            if isinstance(node, ast.ImportFrom) and node.module == "pickle":
                readers = {"load", "loads", "Unpickler"}
                found += [f"from pickle import {name}" for name in names if name in readers]
        elif isinstance(node, ast.Attribute) and node.attr in COLLECTIVES:
            found.append(node.attr)
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in NEVER:
            found.append(ast.unparse(node))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found += [] if ast.unparse(node.value) == "False" else ["allow_pickle"]
        elif isinstance(node, ast.Call) and (name := ast.unparse(node.func)) in ONLY_WITH:
            word, value = ONLY_WITH[name]
            if not any(key.arg == word and ast.unparse(key.value) == str(value) for key in node.keywords):
                found.append(f"{name} without {word}={value}")
    return found


@pytest.mark.parametrize(
    "module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_reads_no_pickle(module):
    assert pickles(module.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "dist.all_gather_object(a, b)",
        "torch.distributed.broadcast_object_list(a)",
        "pickle.loads(b)",
        "from pickle import load",
        "import dill",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "dcp.save(a, storage_writer=b)",
        "dcp.load(a, process_group=b)",
    ],
)
def test_what_reads_pickles_shows(source):
    assert pickles(source) != []


def test_what_does_not_is_left_alone():
    assert (
        pickles(
            "torch.load(p, weights_only=True)\nnp.load(p)\ndcp.load(a, no_dist=True)\npickle.UnpicklingError"
        )
        == []
    )


def refused() -> list[str]:
    """Every way that these tests know, in a process of its own."""
    import io
    import pickle

    import torch
    from torch.distributed import distributed_c10d

    data = pickle.dumps({"a": 1})
    refuse_pickles()
    ways = {
        "loads": lambda: pickle.loads(data),
        "load": lambda: pickle.load(io.BytesIO(data)),
        "class": lambda: pickle.Unpickler(io.BytesIO(data)).load(),
        "object": lambda: distributed_c10d._tensor_to_object(
            torch.frombuffer(bytearray(data), dtype=torch.uint8), len(data), None
        ),
    }
    found = []
    for name, way in ways.items():
        try:
            way()
        except AssertionError:
            found.append(name)
    return found


def test_runs_of_tests_refuse_them():
    """`helpers.warm` and `helpers.ranks` start nearly every run of these tests, and both call this."""
    from tests.helpers.ranks import run_ranks

    assert run_ranks(refused, 1) == [["loads", "load", "class", "object"]]
