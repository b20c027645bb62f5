"""The breakages of tests/mutations.txt have the table's rows, and stand for code and tests that there are."""

import ast

import pytest

from tests.mutations import (
    CAUGHT,
    DATA,
    MISSED,
    ROOT,
    TABLE,
    UNFIT,
    Mutation,
    Outcome,
    read_mutations,
    table_rows,
    verdict,
)

MUTATIONS = read_mutations(DATA.read_text())
ROWS = table_rows(TABLE.read_text())


def test_rows_are_the_tables_and_tests_lie_within_those_named_there():
    assert list(dict.fromkeys(mutation.row for mutation in MUTATIONS)) == [row for row, _ in ROWS]
    named = {row: tests.split(", ") for row, tests in ROWS}
    for mutation in MUTATIONS:
        for test in mutation.tests:
            assert test.startswith(tuple(named[mutation.row])), mutation.row


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: each.row)
def test_a_mutation_can_be_made_and_its_tests_exist(mutation, tmp_path):
    copy = tmp_path / mutation.file
    copy.parent.mkdir(parents=True)
    copy.write_text((ROOT / mutation.file).read_text())
    mutation.apply(tmp_path)
    assert copy.read_text() != (ROOT / mutation.file).read_text()
    assert mutation.tests
    for test in mutation.tests:
        path, _, name = test.partition("::")
        names = {getattr(each, "name", "") for each in ast.parse((ROOT / "tests" / path).read_text()).body}
        assert name.partition("[")[0].partition(" ")[0] in names


FORMAT = """what this is

## row
file name
- old
+ new

## one row
file a.py
test core/test_a.py::test[b c]
- x = 1
-     y = 2
+ x = 2
+ 
+ z = 3
- gone
file b.py
test core/test_a.py::test -k word
- w
+ v
"""


def test_the_format():
    assert read_mutations(FORMAT) == [
        Mutation(
            "one row",
            "a.py",
            ["core/test_a.py::test[b c]"],
            [("x = 1\n    y = 2", "x = 2\n\nz = 3"), ("gone", "")],
        ),
        Mutation("one row", "b.py", ["core/test_a.py::test -k word"], [("w", "v")]),
    ]


def test_a_text_that_does_not_stand_there_once_is_refused(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    for old, times in (("x = 1", 2), ("y", 0)):
        with pytest.raises(ValueError, match=f"{UNFIT}: '{old}' is {times} times in a.py"):
            Mutation("row", "a.py", [], [(old, "x = 2")]).apply(tmp_path)


@pytest.mark.parametrize(
    ("code", "ends", "said"),
    [
        (1, [("", ""), ("failure", "E   assert 1 == 2")], CAUGHT),
        (1, [("", ""), ("failure", "E   RuntimeError: rank 0:\nTransportError: silent")], CAUGHT),
        (1, [("", ""), ("failure", "E   RuntimeError: rank 0:\nNameError: x")], MISSED),
        (1, [("", ""), ("error", "E   assert 1 == 2")], MISSED),
        (0, [("", "")], MISSED),
        (0, [("", ""), ("skipped", "needs root")], UNFIT),
        (2, [], MISSED),
        (None, [], MISSED),
    ],
)
def test_only_a_failure_of_the_test_itself_is_caught(code, ends, said):
    outcome = Outcome(code, [("a.py::test", end, text) for end, text in ends])
    found = verdict(outcome)
    assert found == said or said != CAUGHT and found.startswith(said)
