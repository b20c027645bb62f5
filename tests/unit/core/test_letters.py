"""Shapes in names: each letter of a suffix (x_BD) is in the table of `core.types` or in its file's legend."""

import ast
import re

import pytest

from tests.unit.core.test_floors import MODULES, PACKAGE

SUFFIX = re.compile(r"_?(?:\w*[a-z0-9]\w*|[VW])_(?=[a-z1]*[A-Z])([A-Za-z1]{1,3})")
"""Behind a word, or a weight's one letter; not behind capitals, which are a constant's (POLL_S, os.R_OK)."""
TABLE = {
    letter
    for line in (ast.get_docstring(ast.parse((PACKAGE / "core/types.py").read_text())) or "").splitlines()
    for letter in re.findall(r"^    (\S)   ", line)
}


def names(tree: ast.AST) -> set[str]:
    """Every name that a file binds or reads."""
    found: set[str] = set()
    for node in ast.walk(tree):
        found |= {getattr(node, field, None) for field in ("id", "attr", "arg", "name")}
    return {name for name in found if isinstance(name, str)}


def legend(tree: ast.AST) -> str:
    """What the docstrings of a file say of its letters: each paragraph from `Letters:` on."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = (ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, documented))
    return "\n".join(part for doc in docs for part in re.findall(r"Letters:.*?(?:\n\n|\Z)", doc, re.DOTALL))


def unexplained(source: str) -> dict[str, str]:
    """Letters of shapes without a meaning, each with a name that has it."""
    tree = ast.parse(source)
    explained = TABLE | set(re.findall(r"\b[A-Za-z]\b(?= [a-z=])", legend(tree)))
    return {
        letter: name
        for name in sorted(names(tree))
        if (shape := SUFFIX.fullmatch(name))
        for letter in set(shape.group(1)) - explained
    }


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_letter_of_a_shape_has_a_meaning(module):
    assert unexplained(module.read_text()) == {}


@pytest.mark.parametrize(
    ("source", "letters"),
    [
        ("y = x_BD + W_FD", set()),
        ("scores_BQ = x", {"Q"}),
        ("def f(W_ZD, *, rows_bJ): pass", {"Z", "J"}),
        ('"""Sums.\n\nLetters: as core.types; Q queries.\n"""\nscores_BQ = x', set()),
        ('"""Sums of Q queries."""\nscores_BQ = x', {"Q"}),
        ("GRACE_Q = os.R_OK | os.O_RDONLY", set()),
    ],
)
def test_a_letter_without_a_meaning_shows(source, letters):
    assert set(unexplained(source)) == letters


def test_the_table_is_read():
    assert {"B", "b", "D", "E", "F", "f", "K", "R", "1"} <= TABLE
