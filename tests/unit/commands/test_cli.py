"""The command line: how a command is found, explained, refused, and how its errors are said."""

import errno
import importlib
import subprocess
import sys

import pytest

from sae_dist import cli
from sae_dist.commands import train
from sae_dist.commands.keys import meanings
from sae_dist.commands.main import COMMANDS, explained, overview, shown
from sae_dist.config.run import RunConfig, flat
from sae_dist.core.errors import ConfigError, DataError, Preempted
from sae_dist.export.formats import FORMATS
from sae_dist.export.names import FILES
from sae_dist.launch.options import groups


@pytest.mark.parametrize("line", ["", "--help", "-h", "help", "--version", "train -h", "eval a --help"])
def test_help_is_an_answer(line, capsys):
    assert cli.main(line.split()) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", shown())
def test_a_command_is_explained_as_the_overview_names_it(name, capsys):
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out == explained(name) and max(map(len, out.splitlines())) <= 110
    usage, _, summary = out.splitlines()[0].partition("    ")
    line = next(line for line in overview().splitlines() if line.strip().startswith(f"{usage} "))
    assert line.endswith(f"  {summary}") and summary


def test_every_module_of_a_command_is_in_the_table():
    assert all(
        callable(importlib.import_module(f"sae_dist.commands.{c.module}").run) for c in COMMANDS.values()
    )
    assert max(map(len, overview().splitlines())) <= 110


def test_formats_are_those_of_the_export():
    assert list(FILES) == list(FORMATS)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("trian", "there is no command trian; nearest: train"),
        ("evaluate", "there is no command evaluate; nearest: eval"),
        ("zzz", "there is no command zzz; sae-dist --help lists the commands"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(word, says, capsys):
    assert cli.main([word, "sae.k=16"]) == 2
    assert capsys.readouterr().err == f"sae-dist: error: {says}\n"


def test_help_of_train_names_every_group_and_option(capsys):
    cli.main(["train", "--help"])
    out = capsys.readouterr().out
    assert all(f"{group}={'|'.join(options)}" in out for group, options in groups().items())


def test_cfg_prints_yaml_wherever_it_stands(capsys):
    texts = []
    for words in (["--cfg", "job", "sae.k=7"], ["sae.k=7", "--cfg", "job"]):
        assert cli.main(["train", *words]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and "  k: 7\n" in texts[0]


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (DataError("file x,\n row 3"), 1, "error: "),
        (ConfigError("k"), 2, "error: "),
        (Preempted("stopped at step 3 as asked"), 75, ""),
    ],
)
def test_an_error_of_ours_is_one_line_and_its_code(error, code, kind, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr(train, "run", fail)
    assert cli.main(["train"]) == code
    assert capsys.readouterr().err == f"sae-dist: {kind}{' '.join(str(error).split())}\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_is_one_line(number, monkeypatch, capsys):
    def fail(_):
        raise OSError(number, "it is full", "run/metrics.jsonl")

    monkeypatch.setattr(train, "run", fail)
    assert cli.main(["train"]) == 1
    err = capsys.readouterr().err
    assert (
        err.startswith("sae-dist: error: cannot write run/metrics.jsonl: it is full") and err.count("\n") == 1
    )


def test_an_unexpected_error_keeps_its_traceback(monkeypatch):
    def fail(_):
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(train, "run", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        cli.main(["train"])


def test_the_traceback_of_an_unexpected_error_hides_secrets():
    program = (
        "import sys; from sae_dist import cli; from sae_dist.commands import report\n"
        "def fail(words): raise RuntimeError('\\x1b[31mfor https://me:hunter22@example.org/x')\n"
        "report.run = fail; sys.argv = ['sae-dist', 'report', 'x']; sys.exit(cli.main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "Traceback (most recent call last)" in done.stderr
    assert r"RuntimeError: \x1b[31mfor ***example.org/x" in done.stderr and "hunter22" not in done.stderr


@pytest.mark.parametrize(
    "words",
    [[], ["train", "outputs/x"], ["bench", "a", "--parent-pipe", "b"], ["a", "b", "c", "1"], ["--help"]],
)
def test_a_process_of_a_run_is_not_started_by_hand(words, capsys):
    assert cli.main(["rank", *words]) == 2
    assert capsys.readouterr().err == (
        "sae-dist: error: sae-dist rank is one process of a run, which sae-dist starts itself\n"
    )


def test_resume_takes_no_keys(capsys):
    assert cli.main(["resume", "outputs/run", "topology.shard=2"]) == 2
    err = capsys.readouterr().err
    assert "topology.shard=2: resume takes no keys" in err and "name=run resume=auto" in err


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


@pytest.mark.parametrize("command", [name for name, command in COMMANDS.items() if command.keys])
def test_help_says_what_a_key_means(command, capsys):
    assert cli.main([command, "--help", "sae.k"]) == 0
    assert capsys.readouterr().out.split() == (
        "sae.k=32 codes per row: topk at most, batchtopk and matryoshka on average".split()
    )


def test_help_says_what_the_keys_of_a_section_mean(capsys):
    assert cli.main(["train", "--help", "shuffle"]) == 0
    out = capsys.readouterr().out
    assert "shuffle.lanes=null" in out and "a multiple of shard * dp" in out and "sae.k" not in out
    assert cli.main(["train", "--help", "sae.kk"]) == 2
    assert "names no key and no section; nearest: sae.k" in capsys.readouterr().err
