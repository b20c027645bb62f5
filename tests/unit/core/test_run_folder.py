"""The run folder's names have one home, and its status is read from what is in it."""

import ast
import json

import pytest

from sae_dist.core import run_folder
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import METRICS, SUMMARY, read_summary, status
from tests.unit.core.test_floors import MODULES, PACKAGE

HOME = "core/run_folder.py"
PEERS = "bench/peers/"  # other Python environments run these files, without sae_dist
VALUES = ("FINISHED", "TRAINED", "DIVERGED", "IMPORTED")
NAMES = {value for key, value in vars(run_folder).items() if key.isupper() and key not in VALUES}


def spelled(source: str) -> set[str]:
    """Names of the run folder that a file spells: a file's name by itself, any name as part of a path.

    Words of a sentence, of a command and of W&B's keys are no names of the run folder.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = node.value.split("/")
            found |= {part for part in parts if "." in part and part in NAMES}
            found |= {part for part in parts if "*" in node.value and part in NAMES}
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            sides = (getattr(side, "value", None) for side in (node.left, node.right))
            found |= {part for side in sides if isinstance(side, str) for part in side.split("/")} & NAMES
    return found


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_names_are_spelled_in_one_file(module):
    place = module.relative_to(PACKAGE).as_posix()
    if place != HOME and not place.startswith(PEERS):
        assert spelled(module.read_text()) == set()


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ('path = folder / "config.yaml"', {"config.yaml"}),
        ('path = folder / "export" / "cfg.json"', {"export"}),
        ('path = folder / "checkpoints/latest"', {"checkpoints", "latest"}),
        ('SUMMARY = "summary.json"', {"summary.json"}),
        ('folder.glob("*/plots/*.png")', {"plots"}),
        ('f"{folder}/eval.json"', {"eval.json"}),
        ('raise E("write one with sae-dist export")', set()),
        ('words = ("export", "import")', set()),
    ],
)
def test_a_spelled_name_shows(source, names):
    assert spelled(source) == names


def test_status_of_a_run_folder(tmp_path):
    assert status(tmp_path / "gone") == "missing" and read_summary(tmp_path / "gone") == {}
    assert status(tmp_path) == "not started"
    (tmp_path / METRICS).touch()
    assert status(tmp_path) == "unfinished"
    (tmp_path / SUMMARY).write_text(json.dumps({"status": "trained", "fvu": 0.5}))
    assert status(tmp_path) == "trained" and read_summary(tmp_path)["fvu"] == 0.5
    assert status(tmp_path, {"status": "diverged"}) == "diverged"


def test_a_damaged_summary_is_named_where_it_is_read(tmp_path):
    """What the run did is then not known: it is unfinished, and continues."""
    (tmp_path / METRICS).touch()
    (tmp_path / SUMMARY).write_text('{"status": "fini')
    assert status(tmp_path) == "unfinished"
    with pytest.raises(ConfigError, match=r"summary\.json is not JSON"):
        read_summary(tmp_path)


def test_where_a_link_to_a_folder_leads_is_said(tmp_path, capsys):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "export").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "newest").symlink_to("export")
    run_folder.check_links(tmp_path / "run")
    where = f"what is written and removed there is in {tmp_path}/elsewhere"
    assert capsys.readouterr().err == f"{tmp_path}/run/checkpoints is a link: {where}\n"
