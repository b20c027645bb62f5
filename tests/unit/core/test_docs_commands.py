"""The commands of the documentation and of launch/: each would start."""

import copy
import functools
import os
import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from sae_dist import cli
from sae_dist.config.grid import over_layers
from sae_dist.config.resolve import resolve, resolved_members
from sae_dist.config.rules.sharing import sharing_problems
from sae_dist.config.run import RunConfig, parse_counts
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config
from sae_dist.launch.overrides import expand
from sae_dist.launch.run import checked
from tests.unit.config.test_config_rules import FACTS
from tests.unit.config.test_sharing import mended

ROOT = Path(__file__).parents[3]
READ = (
    "README.md",
    "CONTRIBUTING.md",
    "slurm/README.md",
    "launch/README.md",
    "sae_dist/evaluation/README.md",
)
PAGES = [ROOT / each for each in READ] + sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = sorted(each for each in (ROOT / "launch").glob("*.sh") if "gpu" not in each.name)
SUBSTITUTED = {
    "device=cuda": "device=cpu",
    "cluster=mysite": "cluster=example_gpu",
    "output=/shared/outputs": "output=outputs",
}
"""What a reader has and this machine has not."""
NEEDS = {
    "activations=cache": "a cache",
    "activations=file": "an array",
    "llm.name=...": "a model of the reader's",
    "llm.name=EleutherAI/pythia-160m": "a model of the Hub",
    "llm.name=gpt2": "a model of the Hub",
    "tokens.data_files=docs.jsonl": "a file",
    "tokens.data_files=chats.jsonl": "a file",
    "tokens.dataset=saved/": "a folder",
    "tokens.path=my_texts/": "a folder",
    "tokens.path=shards/{000..031}.tar": "tar files",
}
"""Words of commands that are composed and validated alone, without opening what they name."""
OPENED: set[frozenset[str]] = set()
LAUNCHED = re.compile(r"torchrun .*-m sae_dist\.cli |deepspeed .*--module sae_dist\.cli ")


@dataclass(frozen=True)
class Command:
    """A command as a reader would type it.

    Attributes:
        ranks: how many processes its launcher starts; None: it has none.
    """

    words: tuple[str, ...]
    ranks: int | None = None

    def __str__(self) -> str:
        return " ".join(self.words)


def commands_of(text: str) -> list[Command]:
    """The commands of sae_dist in blocks of code and in code within lines; `...` alone is left out."""
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    found = []
    for line in lines:
        for part in line.split(" && "):
            command = command_of(part)
            if command is not None:
                found.append(command)
    return found


def command_of(line: str) -> Command | None:
    launcher = LAUNCHED.match(line)
    if launcher is None and not line.startswith("sae-dist "):
        return None
    words = shlex.split(line[launcher.end() if launcher else len("sae-dist ") :], comments=True)
    if launcher is None:
        return Command(tuple(word for word in words if word != "..."))
    given = dict(re.findall(r"--(nnodes|nproc-per-node) (\d+)", launcher[0]))
    return Command(tuple(words), int(given.get("nnodes", 1)) * int(given["nproc-per-node"]))


COMMANDS = list(dict.fromkeys(each for page in PAGES for each in commands_of(page.read_text())))
CONFIGURED = [each for each in COMMANDS if each.words[0] in ("train", "harvest", "submit", "import")]
OTHERS = [each for each in COMMANDS if each not in CONFIGURED]


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return compose_config(list(overrides))


def composed(overrides: list[str]) -> RunConfig:
    """What several tests compose, composed once: it takes a third of a second."""
    return copy.deepcopy(_composed(tuple(overrides)))


@pytest.fixture(autouse=True)
def composed_once(monkeypatch):
    monkeypatch.setattr("sae_dist.launch.settle.compose_config", composed)


def is_shared(command: Command) -> bool:
    """Whether a command says something about what is shared out to ranks."""
    keys = re.compile(r"topology|sae\.num_latents|sae\.expansion|grid\.|batch|debug|experiment")
    asks = {"--help", "--cfg"} & set(command.words)
    mentions = len(command.words) == 1 or any(map(keys.match, command.words))
    return command.words[0] in ("train", "submit") and not asks and mentions


def check(command: Command, *, alone: bool) -> None:
    """Check the values of a command.

    Args:
        alone: by its words only; else with its model and its data, as the command does before it starts.

    Raises:
        ConfigError: it would not start.
    """
    overrides = [SUBSTITUTED.get(word, word) for word in command.words[1:]]
    overrides = [word for word in overrides if "=" in word and not word.startswith("-")]
    submitted = command.words[0] == "submit" or "hydra/launcher=slurm" in overrides
    every = expand([word for word in overrides if word != "hydra/launcher=slurm"])
    for each in every[:: max(len(every) - 1, 1)]:
        if command.words[0] == "import":
            composed(each)
        elif alone:
            validate(over_layers(parse_counts(composed(each)), 4), command.ranks, submitted=submitted)
        else:
            checked(each, command.ranks, submitted=submitted)


def needs(command: Command) -> set[str]:
    return set(NEEDS) & set(command.words) if command.words[0] != "import" else set()


def opened(command: Command) -> frozenset[str]:
    """The words of a command that say which model and data it opens."""
    keys = (
        "llm",
        "hook",
        "target_hook",
        "grid.hook",
        "grid.target_hook",
        "tokens",
        "activations",
        "sae.start",
        "debug",
        "experiment",
    )
    return frozenset(word for word in command.words if word.startswith(keys))


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", CONFIGURED, ids=str)
def test_the_command_would_start(command, elsewhere, capsys):
    asks = {"--help", "--cfg"} & set(command.words)
    if asks:
        assert cli.main(list(command.words)) == 0
        return
    # Opening the same model and the same data once is enough: it takes most of a second.
    check(command, alone=bool(needs(command)) or opened(command) in OPENED)
    OPENED.add(opened(command))
    if needs(command) and command.words[0] != "import":
        with pytest.raises(ConfigError):
            check(command, alone=False)


def starts_or_says_how(command: Command) -> None:
    """Check that a command starts on any number of ranks, or says with which values it would."""
    words = [SUBSTITUTED.get(word, word) for word in command.words if "=" in word and word[0] != "-"]
    run = composed(expand([each for each in words if "launcher" not in each])[0])
    facts = FACTS if run.runs_llm else None
    whole = resolve(run, facts, FACTS.width)
    for cfg in (whole, *resolved_members(whole, facts, FACTS.width)[:1]):
        as_written = cfg.topology.shard
        for shard in range(1, 65):
            cfg.topology.shard = shard
            if problem := next(sharing_problems(cfg), None):
                assert shard != as_written and not list(sharing_problems(mended(cfg, problem)))


@pytest.mark.parametrize("command", [each for each in CONFIGURED if is_shared(each)], ids=str)
def test_the_command_would_start_on_1_to_64_ranks(command, elsewhere):
    starts_or_says_how(command)


@pytest.mark.parametrize("command", OTHERS, ids=str)
def test_other_commands_have_these_options(command, capsys):
    name = command.words[: 2 if command.words[0] == "bench" and len(command.words) > 1 else 1]
    if name[-1].startswith("--"):
        assert cli.main(list(name)) == 0
        return
    try:
        assert cli.main([*name, "--help"]) == 0
    except SystemExit as left:
        assert left.code == 0
    told = capsys.readouterr().out
    options = {word for word in command.words if word.startswith("--")}
    assert {option for option in options if not re.search(rf"{option}\b", told)} - {"--help"} == set()


def test_commands_are_found_and_none_is_listed_in_vain():
    words = {word for command in COMMANDS for word in command.words}
    assert len(CONFIGURED) > 40 and len(OTHERS) > 20
    assert set(NEEDS) <= words and set(SUBSTITUTED) <= words


def test_a_command_that_cannot_start_shows(elsewhere):
    block = "```\nsae-dist train sae.kk=3 \\\n  seed=1 # no\n```\n"
    text = f"`sae-dist train topology.producers=2\n topology.shard=6`\n{block}"
    for command, reason in zip(commands_of(text), ("sae.kk", "not divisible"), strict=True):
        with pytest.raises(ConfigError, match=reason):
            check(command, alone=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_is_short_and_asks_for_what_would_start(script, tmp_path, elsewhere):
    """Its launcher is replaced by one that writes down what it was given."""
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    assert len(script.read_text().splitlines()) <= 30 and os.access(script, os.X_OK)
    (tmp_path / "hosts").write_text("worker-1 slots=4\nworker-2 slots=4\n")
    (tmp_path / "bin").mkdir()
    for name in ("sae-dist", "torchrun", "deepspeed"):
        fake = tmp_path / "bin" / name
        fake.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >>{tmp_path}/given\n')
        fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}", "node_rank": "0"}
    subprocess.run([script, "seed=1"], env=environment, check=True)
    line = (tmp_path / "given").read_text().splitlines()[0]
    launcher = LAUNCHED.match(line)
    command = Command(tuple(line[launcher.end() if launcher else len("sae-dist ") :].split()))
    assert (
        command.words[-1] == "seed=1" and {"--hostfile", "--rdzv-id"} & set(line.split()) or launcher is None
    )
    check(Command(command.words, 8 if launcher else None), alone=False)
    starts_or_says_how(command)
