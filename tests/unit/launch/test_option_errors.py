"""A mistake in the file of an option: one line with the file, the key and the fix."""

import pytest

from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config

FILES = {
    "cluster/bad": (
        "partion: gpu\ntime: '1:00'\n",
        "bad.yaml: partion is not a key; nearest: partition$",
    ),
    "cluster/inner": ("producer:\n  partion: x\n", "producer.partion is not a key; nearest: partition$"),
    "cluster/far": ("xyz: 1\n", "far.yaml: xyz is not a key; keys: cluster.account, .*"),
    "cluster/type": (
        "cpus_per_task: many\n",
        ": many has the wrong type; .* takes a whole number$",
    ),
    "cluster/syntax": ("a: [1\nb: 2\n", "^conf/cluster/syntax.yaml is not YAML: .* in line 2$"),
    "cluster/list": ("- a\n", "^conf/cluster/list.yaml holds no keys; write a line for each"),
    "sae/mine": ("kind: topk\nkk: 3\n", "^conf/sae/mine.yaml: kk is not a key; nearest: k$"),
    "experiment/mine": (
        "# @package _global_\nsae:\n  nun_latents: 5\n",
        "^conf/experiment/mine.yaml: sae.nun_latents is not a key; nearest: num_latents$",
    ),
    "experiment/bare": (
        "sae: {k: 8}\n",
        "sets keys of several .* first line: # @package _global_$",
    ),
    "experiment/deep": (
        "# @package _global_\ndefaults:\n  - override /sae: top\n",
        "asks for sae=top, which is not an option; options: batchtopk, .*topk$",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_the_file_and_the_key_are_named(name, tmp_path, monkeypatch):
    content, says = FILES[name]
    file = tmp_path / "conf" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=says) as found:
        compose_config([name.replace("/", "=")])
    assert "\n" not in str(found.value)


def test_a_file_without_mistakes_composes(tmp_path, monkeypatch):
    file = tmp_path / "conf" / "cluster" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("partition: gpu\nproducer:\n  partition: cpu\n")
    monkeypatch.chdir(tmp_path)
    cfg = compose_config(["cluster=mine"])
    assert (cfg.cluster.partition, cfg.cluster.producer.partition) == ("gpu", "cpu")
