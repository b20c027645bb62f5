"""Sizes and errors as short texts."""

import ast
from pathlib import Path

import pytest
from markupsafe import Markup

from sae_dist.commands.failures import say
from sae_dist.core.errors import ConfigError
from sae_dist.core.template import rendered
from sae_dist.core.text import (
    check_plain,
    class_and_line,
    first_line,
    gib,
    print_line,
    quoted,
    show,
    visible,
)

PACKAGE = Path(__file__).parents[3] / "sae_dist"
HOSTILE = "a\x1b[31m\x00\x07\x7f\x9b\u2028\u2029\u202e\u2066\u061c\udc80é\U0001f600"
SHOWN = "a\\x1b[31m\\x00\\x07\\x7f\\x9b\\u2028\\u2029\\u202e\\u2066\\u061c\\udc80é\U0001f600"


def test_bytes_in_gib():
    assert gib(3 * 2**29) == "1.5 GiB" and gib(3 * 2**29, 2) == "1.50 GiB" and gib(2**42) == "4,096.0 GiB"


@pytest.mark.parametrize(
    ("error", "line", "named"),
    [
        (ValueError("no such key\nsecond line"), "no such key", "ValueError: no such key"),
        (KeyError(), "KeyError", "KeyError: "),
        (RuntimeError("\n  late\n"), "late", "RuntimeError: late"),
    ],
)
def test_an_error_in_one_line(error, line, named):
    assert first_line(error) == line and class_and_line(error) == named


def test_a_line_goes_to_stderr(capfd):
    print_line("half of the chunks")
    assert capfd.readouterr() == ("", "half of the chunks\n")


def test_control_characters_are_written_out():
    assert visible(HOSTILE) == SHOWN
    assert visible("a\tb\nc") == "a\tb\nc" and visible("a\tb\nc", "") == "a\\tb\\nc"
    assert quoted("it's\nhere") == "'it'\"'\"'s\\nhere'"


def test_every_door_to_the_terminal_writes_them_out(capsys):
    show(HOSTILE)
    print_line(HOSTILE)
    say(ConfigError(HOSTILE))
    out, err = capsys.readouterr()
    assert out == f"{SHOWN}\n"
    # An error is one line: line separators of any kind are spaces there.
    joined = " ".join(SHOWN.replace("\\u2028", " ").replace("\\u2029", " ").split())
    assert err == f"{SHOWN}\nsae-dist: error: {joined}\n"


def test_every_page_writes_them_out(tmp_path):
    (tmp_path / "page.html").write_text("<a title='{{ x }}'>{{ x }}</a>{{ y }}")
    page = rendered(tmp_path / "page.html", {"x": HOSTILE, "y": Markup("<b>\u202e\x1b</b>")})
    assert page == f"<a title='{SHOWN}'>{SHOWN}</a><b>\\u202e\\x1b</b>"


def test_names_that_reach_scripts_have_none():
    check_plain("a name, with 'quotes' and é", "name")
    with pytest.raises(ConfigError, match=r"^name=a\\nb has the control character \\n; write it without$"):
        check_plain("a\nb", "name")


def test_nothing_else_prints():
    """`show` and `print_line` are the doors; the benchmark's tools are for those who make this."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        place = path.relative_to(PACKAGE).as_posix()
        if place == "core/text.py" or place.startswith("bench/"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("print", "sys.stdout.write", "sys.stderr.write", "tqdm.write"):
                found.append(f"{place}:{node.lineno}")
    assert found == []
