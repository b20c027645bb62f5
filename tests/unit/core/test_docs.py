"""The documentation: its links lead somewhere, its tables of contents and its index are complete."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FOLDERS = ("docs", "docker", "launch", "sae_dist", "slurm", "tests")
PAGES = sorted([*ROOT.glob("*.md"), *(page for each in FOLDERS for page in (ROOT / each).rglob("*.md"))])
DOCS = sorted((ROOT / "docs").glob("*.md"))
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
INDEX = ROOT / "docs" / "decisions" / "index.md"
MADE = ("sae_dist/metrics/README.md", "sae_dist/evaluation/README.md", "sae_dist/llm/embedded/README.md")
"""Of these tables and texts others keep the width."""
COLUMNS = 110
NAMED = re.compile(r"`((?:conf|docs|launch|sae_dist|slurm|tests|tools)/[\w./-]+\w)`")
EXAMPLE = re.compile(r"mysite|/local/|/x\.|slurm/testcluster")
"""Paths that a reader makes."""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """The text without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def headings(page: Path, level: str = "#+") -> list[str]:
    return re.findall(rf"^{level} (.+)$", prose(page.read_text()), flags=re.M)


def targets(page: Path) -> list[str]:
    """Where the links of a page lead, those of references too."""
    text = prose(page.read_text())
    inline = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "code", text))
    return inline + re.findall(r"^\[[^\]]+\]: (\S+)$", text, flags=re.M)


def broken(page: Path) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    for target in targets(page):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists():
            found.append(target)
        elif anchor and anchor not in map(slug, headings(there)):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_shows(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# One word\n[a](#one-word) [b](#two) [c](page.md#one-word) [d](none.md)\n\n[e]: none.md#x\n"
    )
    assert broken(page) == ["#two", "none.md", "none.md#x"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_references_of_a_page_are_defined(page):
    text = re.sub(r"`[^`\n]*`", "", prose(page.read_text()))
    defined = re.findall(r"^\[(\w+)\]: ", text, flags=re.M)
    used = set(re.findall(r"\[([a-z]\d+)\](?![(:])", text))
    assert len(defined) == len(set(defined)) and used <= set(defined)


@pytest.mark.parametrize(
    "page", [*DOCS, INDEX, *(ROOT / each / "README.md" for each in ("slurm", "tests"))], ids=name_of
)
def test_a_table_of_contents_lists_every_heading(page):
    head = page.read_text().split("\n## ", 1)[0]
    assert re.findall(r"^- \[(.+)\]\(#", head, flags=re.M) == headings(page, "##")


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", DECISIONS, ids=name_of)
def test_decisions_fit_a_screen(page):
    assert [line for line in page.read_text().splitlines() if len(line) > COLUMNS] == []


@pytest.mark.parametrize("page", [each for each in PAGES if name_of(each) not in MADE], ids=name_of)
def test_prose_is_wrapped(page):
    lines = page.read_text().splitlines()
    assert [line for line in lines if len(line) > COLUMNS and not line.startswith("|")] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page):
    named = {path for path in NAMED.findall(page.read_text()) if not EXAMPLE.search(path)}
    assert {path for path in named if not (ROOT / path).exists()} == set()


def test_every_decision_is_in_the_index_once():
    entries = [
        f"{page.name}#{slug(each)}" for page in DECISIONS if page != INDEX for each in headings(page, "##")
    ]
    indexed = dict(re.findall(r"^\[(\w+)\]: (\S+)$", INDEX.read_text(), flags=re.M))
    rows = re.findall(r"^\| \[(\w+)\] .* \| (\d\d-\d\d) \| (.+) \|$", INDEX.read_text(), flags=re.M)
    assert sorted(indexed.values()) == sorted(entries)
    assert [key for key, *_ in rows] == list(indexed)
    for key, date, stands in rows:
        file, _, anchor = indexed[key].partition("#")
        (body,) = (
            part
            for part in (INDEX.parent / file).read_text().split("\n## ")[1:]
            if slug(part.splitlines()[0]) == anchor
        )
        opening = body.split("\n\n")[1]
        assert opening.startswith(f"2026-{date}.")
        # An entry that was superseded says so at its head, and names the same entries as the index.
        how = {"yes": "", "no": "**Superseded by**", "part": "**Superseded in part by**"}[
            stands.partition(":")[0]
        ]
        assert how in opening and ("Superseded" in opening) == bool(how)
        by = {indexed[other] for other in re.findall(r"\[(\w+)\]", stands)}
        links = {
            target if target[0] != "#" else file + target for target in re.findall(r"\]\((\S+?)\)", opening)
        }
        assert links == by
