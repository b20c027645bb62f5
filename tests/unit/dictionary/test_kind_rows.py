"""The table of kinds says what the classes do, and a kind's parameters are named in its own file alone."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from sae_dist.config.kinds import KINDS, READ_BY
from sae_dist.config.sections import SaeConfig
from sae_dist.dictionary.base import Dictionary, dictionary_class
from sae_dist.dictionary.selecting import SelectedDictionary
from sae_dist.export.exported import FORMS

ROOT = Path(__file__).parents[3]
LIBRARY = ROOT / "sae_dist"
MAY_NAME = ("export/exported.py", "export/published.py", "export/dictionary_learning.py")
"""Where parameters of kinds are named besides the kinds' files: what codes are made of, and foreign names."""


def test_every_file_of_a_kind_has_a_row_and_values():
    files = {path.stem for path in (LIBRARY / "dictionary" / "kinds").glob("[a-z]*.py")}
    values = {path.stem for path in (ROOT / "conf" / "sae").glob("*.yaml")}
    assert files == values == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_says_what_the_class_does(kind):
    row, its_class = KINDS[kind], dictionary_class(kind)
    assert issubclass(its_class, SelectedDictionary) == row.selected
    assert len(its_class.vectors()) == row.vectors
    assert its_class.form in FORMS
    assert set(its_class.lr_groups) <= {*its_class.sharded, *its_class.replicated, "b_enc"}
    values = yaml.safe_load((ROOT / "conf" / "sae" / f"{kind}.yaml").read_text())
    assert values["kind"] == kind
    assert {*row.reads, *row.may_read} <= {field.name for field in fields(SaeConfig)}
    assert {name for name in values if name in READ_BY} == {*row.reads, *row.may_read}


def test_what_only_one_kind_has_is_named_in_its_file_alone():
    common = set(Dictionary.vectors())
    own = {name: kind for kind in KINDS for name in set(dictionary_class(kind).vectors()) - common}
    assert set(own.values()) == {"gated", "jumprelu"}
    found = []
    for path in sorted(LIBRARY.rglob("*.py")):
        place = path.relative_to(LIBRARY).as_posix()
        named = {name for name in own if re.search(rf"\b{name}\b", path.read_text())}
        allowed = {name for name in own if place in MAY_NAME or place == f"dictionary/kinds/{own[name]}.py"}
        found += [f"{place} names {name}" for name in sorted(named - allowed)]
    assert found == []
