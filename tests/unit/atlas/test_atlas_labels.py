"""Labels beside an atlas: the newest of a latent counts, all are kept, and their words are found."""

import sqlite3
from threading import Thread

import pytest

from sae_dist.atlas.read.labels import REVIEWS, STATES, Labels
from sae_dist.core.errors import ConfigError


@pytest.fixture
def labels(tmp_path):
    return Labels(tmp_path / REVIEWS, 1000)


def test_without_a_file_there_is_no_label(labels):
    assert labels.of([1, 2]) == {} and labels.search("date") == [] and labels.history(1) == []
    assert labels.all() == [] and not labels.path.exists()


def test_the_newest_counts_and_all_are_kept(labels):
    labels.set(3, "dates and years", author="ann")
    labels.set(4, "names of months")
    labels.set(3, "numbers", "confirmed", "bob")
    found = labels.of([3, 4, 5])
    assert {latent: each.text for latent, each in found.items()} == {3: "numbers", 4: "names of months"}
    assert (found[3].state, found[3].author) == ("confirmed", "bob")
    assert [each.text for each in labels.history(3)] == ["numbers", "dates and years"]
    assert [each.latent for each in labels.all()] == [3, 4]
    assert [each.latent for each in labels.all("confirmed")] == [3]


def test_words_of_newest_labels_are_found(labels):
    labels.add(
        [(1, "the Golden Gate bridge"), (2, "gates of logic"), (3, "gold"), (4, "café au lait")],
        *("proposed", ""),
    )
    assert [each.latent for each, _ in labels.search("golden gate")] == [1]
    assert {each.latent for each, _ in labels.search("gate")} == {1, 2}
    assert [each.latent for each, _ in labels.search("CAFE")] == [4]
    assert len(labels.search("g", top=2)) == 2
    labels.set(1, "bridges")
    assert labels.search("golden gate") == []


@pytest.mark.parametrize(
    "words", ['"', '" OR text:a', "NEAR(a b)", "a* -b", "'; DROP TABLE labels; --", "a" * 5000]
)
def test_what_is_looked_for_is_words_and_no_query(labels, words):
    labels.set(1, "a label")
    try:
        assert len(labels.search(words)) <= 1
    except ConfigError as error:
        assert "has no word to look for" in str(error)
    assert len(labels.all()) == 1


@pytest.mark.parametrize(
    ("latent", "text", "state", "says"),
    [
        (1000, "x", STATES[0], "latent 1000 does not exist; the latents are 0 to 999"),
        (-1, "x", STATES[0], "latent -1 does not exist"),
        (True, "x", STATES[0], "latent True does not exist"),
        (1, "x", "sure", "state=sure is unknown; the states are proposed, confirmed"),
        (1, "x" * 2001, STATES[0], "label has 2,001 characters; give at most 2,000"),
        (1, "x\x1b[2J", STATES[0], r"label has the control character '\\x1b'"),
    ],
)
def test_what_is_refused(labels, latent, text, state, says):
    with pytest.raises(ConfigError, match=says):
        labels.set(latent, text, state)
    assert not labels.path.exists()


def test_a_file_of_labels(labels, tmp_path):
    path = tmp_path / "names.json"
    path.write_text('{"7": "dates", "8": "months"}')
    assert labels.read(path) == 2 and labels.of([7])[7].author == "names.json"
    for wrong in ("[1]", '{"a": "b"}', "{", '{"7": "x", "7": "y"}'):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="is no file of labels") as caught:
            labels.read(path)
        assert "\n" not in str(caught.value)
    path.write_text('{"1": "fine", "5000": "not there"}')
    with pytest.raises(ConfigError, match="latent 5000 does not exist"):
        labels.read(path)
    assert labels.of([1]) == {}


def test_several_write_at_once(labels):
    def write(first):
        for number in range(first, first + 25):
            Labels(labels.path, 1000).set(number, f"label {number}")

    threads = [Thread(target=write, args=(25 * n,)) for n in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert [each.latent for each in labels.all()] == list(range(75))


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4096])
def test_a_damaged_file_is_one_line(labels, content):
    labels.path.write_bytes(content)
    for ask in (lambda: labels.of([1]), lambda: labels.set(1, "x"), lambda: labels.search("x")):
        with pytest.raises(ConfigError, match="cannot be used") as caught:
            ask()
        assert "\n" not in str(caught.value)


def test_a_file_that_never_answers_is_given_up(labels, monkeypatch):
    monkeypatch.setattr("sae_dist.atlas.read.labels.BUSY_S", 0.2)
    with sqlite3.connect(labels.path) as file:
        endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
        file.execute(f"CREATE VIEW labels AS SELECT x AS latent, x AS id, '' AS text FROM ({endless})")
    with pytest.raises(ConfigError, match="cannot be used: interrupted"):
        labels.of([1])


def test_a_file_with_other_things_in_its_table_is_one_line(labels):
    labels.set(1, "x")
    with sqlite3.connect(labels.path) as file:
        file.execute("UPDATE labels SET text = x'00ff'")
    with pytest.raises(ConfigError, match="a row of it is no label"):
        labels.of([1])
