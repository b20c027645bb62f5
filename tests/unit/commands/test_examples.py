"""Every example in a help text is a command that starts: it composes and breaks no rule."""

import shlex

import pytest

from sae_dist.commands.arguments import without
from sae_dist.commands.main import COMMANDS, explained, shown
from sae_dist.config.resolve import parse_counts
from sae_dist.config.validate import validate
from sae_dist.launch.compose import compose_config
from sae_dist.launch.overrides import expand
from sae_dist.launch.settle import for_cluster
from sae_dist.launch.sweep import launcher_of

EXAMPLES = [
    (name, line.strip())
    for name in shown()
    for line in explained(name).partition("\nExamples:\n")[2].splitlines()
]


def test_every_command_has_examples():
    assert {name for name, _ in EXAMPLES} == set(shown()) - {"bench"}


@pytest.mark.parametrize("line", dict.fromkeys(line for _, line in EXAMPLES))
def test_an_example_starts(line, tmp_path, monkeypatch):
    site = tmp_path / "conf" / "cluster" / "mysite.yaml"
    site.parent.mkdir(parents=True)
    site.write_text("partition: gpu\ngpus_per_task: 1\n")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line, comments=True)
    # A launcher and its options may come before.
    program, command, *arguments = words[words.index("sae-dist") :]
    assert program == "sae-dist" and command in COMMANDS
    if not COMMANDS[command].keys:
        return
    arguments, many = without([each for each in arguments if "=" in each or each == "-m"], "-m")
    launcher, overrides = launcher_of(arguments)
    assert not (launcher == "slurm" and not many)
    submitted = command == "submit" or launcher == "slurm"
    for each in expand(overrides) if many else [overrides]:
        cfg = parse_counts(compose_config(each))
        validate(for_cluster(cfg) if submitted else cfg, submitted=submitted)


@pytest.mark.parametrize(
    "wrong",
    [
        "sae.num_latents=1048576 topology.producers=8 topology.shard=24",
        "topology.producers=2 topology.shard=6",
    ],
)
def test_one_that_does_not_start_shows(wrong, tmp_path, monkeypatch):
    with pytest.raises(Exception, match="not divisible"):
        test_an_example_starts(f"sae-dist train {wrong}", tmp_path, monkeypatch)
