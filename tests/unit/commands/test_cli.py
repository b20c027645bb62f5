"""The command's own words."""

import errno
import subprocess
import sys

import pytest

from sae_dist import cli
from sae_dist.config.run import RunConfig, flat
from sae_dist.core.errors import DataError, Preempted
from sae_dist.launch.compose import groups
from sae_dist.launch.keys import meanings


@pytest.mark.parametrize("line", ["", "--help", "-h", "train --help", "eval --help", "--version"])
def test_help_is_an_answer(line, capsys):
    assert cli.main(line.split()) == 0
    assert capsys.readouterr().out.strip()


def test_help_of_train_names_every_group_and_option(capsys):
    cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(f"{group}={'|'.join(options)}" in out for group, options in groups().items())
    assert max(map(len, out.splitlines())) <= 110


def test_cfg_prints_yaml_wherever_it_stands(capsys):
    texts = []
    for words in (["--cfg", "job", "sae.k=7"], ["sae.k=7", "--cfg", "job"]):
        assert cli.main(["train", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "  k: 7\n" in texts[0]


@pytest.mark.parametrize(("error", "code"), [(DataError("file x,\n row 3"), 1), (Preempted("stopped"), 75)])
def test_an_error_of_ours_is_one_line_and_its_code(error, code, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(cli, "train", fail)
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == f"sae-dist: error: {' '.join(str(error).split())}\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_is_one_line(number, monkeypatch, capsys):
    def fail(_):
        raise OSError(number, "it is full", "run/metrics.jsonl")

    monkeypatch.setattr(cli, "train", fail)
    assert cli.main(["train"]) == 1
    err = capsys.readouterr().err
    assert (
        err.startswith("sae-dist: error: cannot write run/metrics.jsonl: it is full") and err.count("\n") == 1
    )


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def fail(_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(cli, "train", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["train"])


@pytest.mark.parametrize(
    "words", [["rank"], ["rank", "outputs/x"], ["bench-rank", "a", "--parent-pipe", "b"]]
)
def test_a_process_of_a_run_is_not_started_by_hand(words, capsys):
    assert cli.main(words) == 2
    assert capsys.readouterr().err == (
        f"sae-dist: error: sae-dist {words[0]} is one process of a run, which sae-dist starts itself\n"
    )


def test_many_runs_need_several_values(capsys):
    assert cli.main(["train", "-m", "sae.k=16"]) == 2
    assert "leave -m out for one run" in capsys.readouterr().err


def test_many_runs_differ_in_what_they_compute(capsys):
    assert cli.main(["train", "-m", "sae=topk,relu", "sae.k=16,32"]) == 2
    assert "sae.k has several values, and is not read with sae.kind=relu" in capsys.readouterr().err


def test_every_key_has_a_meaning():
    said = meanings()
    assert list(said) == list(flat(RunConfig()))
    assert not [key for key, entry in said.items() if len(" ".join(entry.split()).partition(" ")[2]) < 4]


def test_help_says_what_a_key_means(capsys):
    assert cli.main(["train", "--help", "sae.k"]) == 0
    assert capsys.readouterr().out.split() == (
        "sae.k=32 codes per row: topk exactly, batchtopk and matryoshka on average".split()
    )
    assert cli.main(["train", "--help", "shuffle"]) == 0
    out = capsys.readouterr().out
    assert "shuffle.lanes=48" in out and "a multiple of shard * dp" in out and "sae.k" not in out
    assert cli.main(["train", "--help", "sae.kk"]) == 2
    assert "names no key and no section; nearest: sae.k" in capsys.readouterr().err


def test_help_and_wrong_words_need_no_torch():
    code = (
        "import sys; from sae_dist import cli\n"
        "assert cli.main(['train', '--help']) == 0 and cli.main(['train', 'sae.k=0']) == 2\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
