"""Composition: every group and experiment, and what the command line may say."""

import itertools
import os

import pytest

from sae_dist.commands.keys import groups_in_words
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, load_config, parse_counts, save_config
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config, print_config
from sae_dist.launch.options import data_folder, groups
from sae_dist.launch.overrides import expand, sweep_keys

GIVEN = {
    "llm=hf": ["llm.name=gpt2"],
    "tokens=text": ["tokens.path=texts"],
    "tokens=webdataset": ["tokens.path=shards/{000..031}.tar"],
    "tokens=hf": ["tokens.dataset=json"],
    "activations=file": ["activations.path=acts.npy"],
    "activations=cache": ["activations.path=outputs/cache"],
}
"""What an option asks for."""

OPTIONS = [f"{group}={option}" for group in groups() if group != "local" for option in groups()[group]]
PAIRS = list(itertools.product(groups()["experiment"], groups()["debug"]))


def composed(*overrides: str) -> RunConfig:
    return parse_counts(compose_config(list(overrides)))


@pytest.mark.parametrize("choice", OPTIONS)
def test_every_option_composes_and_is_valid(choice):
    validate(composed(choice, *GIVEN.get(choice, [])))


@pytest.mark.parametrize("choice", [choice for choice in GIVEN if choice != "tokens=text"])
def test_what_an_option_needs_is_named(choice):
    field = GIVEN[choice][0].split("=")[0]
    with pytest.raises(ConfigError, match=f"{field} must be given"):
        validate(composed(choice))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_experiment_composes_with_every_debug(pair):
    cfg = composed(f"experiment={pair[0]}", f"debug={pair[1]}")
    validate(cfg)
    assert None in (cfg.sae.num_latents, cfg.sae.expansion)


def test_files_hold_values_only():
    for file in data_folder("conf").rglob("*.yaml"):
        assert "_target_" not in file.read_text() and "${" not in file.read_text(), file


def test_defaults_of_the_files_win_over_none_and_lose_to_the_command_line():
    assert composed().sae.k == 32
    assert composed("debug=tiny").sae.k == 8
    assert composed("debug=tiny", "sae.k=5").sae.k == 5
    assert composed("experiment=minilm").llm.name == "minilm"


def test_your_own_text_needs_no_group():
    cfg = composed("tokens.path=texts")
    assert (cfg.tokens.kind, cfg.tokens.path) == ("text", "texts")


def test_one_way_of_giving_the_width_replaces_the_other():
    assert composed("experiment=minilm", "sae.expansion=4").sae.num_latents is None
    assert composed("debug=tiny", "sae.num_latents=512").sae.expansion is None
    both = composed("sae.num_latents=512", "sae.expansion=2")
    assert (both.sae.num_latents, both.sae.expansion) == (512, 2)


@pytest.mark.parametrize(
    "path",
    ["shards/{000..031}.tar", "~/texts", "a(1).txt", "it's {x}.tar", "a b", "x:y", "a=b.txt", r"C:\t{0}"],
)
def test_paths_need_no_quotes_of_hydras(path):
    assert compose_config([f"tokens.path={path}"]).tokens.path == path


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sae.num_latnts=3", "nearest: sae.num_latents"),
        ("d_sae=3", "called sae.num_latents"),
        ("sae.dict_size=3", "called sae.num_latents"),
        ("expansion_factor=3", "called sae.expansion"),
        ("hook_name=x", "called hook"),
        ("hook_point=x", "called hook"),
        ("hookpoint=x", "called hook"),
        ("training_tokens=3", "called train_tokens"),
        ("total_training_tokens=3", "called train_tokens"),
        ("lr=3", "optim.lr=3"),
        ("k=3", "sae.k=3"),
        ("every=3", "metrics.every=3 or checkpoint.every=3"),
        ("metrics=3", "metrics.every"),
        ("metrics={every:3}", "metrics.every"),
        ("llm=gtp2", "llm.name=gtp2"),
        ("sae=topq", "options: batchtopk"),
        ("experiment=x", "options: .*minilm"),
        ("+sae.k=3", "write sae.k=3"),
        ("~sae.k=3", "write sae.k=3"),
        ("sae.k", "key=value"),
        ("~sae.k", "write sae.k=null"),
        ("sae.k = 32", "spaces beside its =; write sae.k=32"),
        ("grid.k=16,32", r"write it as a list: 'grid.k=\[16,32\]'"),
        ("grid.k=16", r"takes a list, each item a whole number: 'grid.k=\[first,second\]'"),
        ("grid.k=[16,", r"in quotes: 'grid.k=\[first,second\]'"),
        (
            "grid.k=[16,a]",
            r"grid.k=\[16,a\] has the wrong type; grid.k takes a list, each item a whole number",
        ),
        ("+sae.foo=1", "sae.foo is not a key; nearest: sae.k"),
        ("cluster=mysite", "your own: conf/cluster/mysite.yaml"),
        ("--batch", "key=value"),
        ("sae.k=1,2", "add -m"),
        ("sae.k=abc", "sae.k=abc has the wrong type; sae.k takes a whole number"),
        ("sae.k=(a.b", "sae.k=.a.b"),
        ("batch=2.5", "a whole number"),
        ("batch=null", "batch takes a whole number"),
        ("optim.lr=[1,2]", "optim.lr takes a number"),
        ("tokens.streaming=maybe", "true or false"),
        ("activations.names=cat", "takes a list"),
        ("seed=${nope}", "seed.*nope"),
        ("zzz=1", "--help"),
    ],
)
def test_what_cannot_be_composed_is_answered_in_one_line(override, says):
    with pytest.raises(ConfigError, match=says) as caught:
        compose_config([override])
    assert "\n" not in str(caught.value)


def test_a_printed_config_is_complete():
    text = print_config(["debug=tiny", "llm=hf"])
    assert "name: ???" in text and "every: 4" in text


def test_expand_is_the_product_in_order():
    assert expand(["sae.k=1,2", "seed=3", "optim.lr=1e-3,1e-2"]) == [
        ["sae.k=1", "seed=3", "optim.lr=0.001"],
        ["sae.k=1", "seed=3", "optim.lr=0.01"],
        ["sae.k=2", "seed=3", "optim.lr=0.001"],
        ["sae.k=2", "seed=3", "optim.lr=0.01"],
    ]
    assert expand(["seed=range(0,3)"]) == [["seed=0"], ["seed=1"], ["seed=2"]]
    assert sweep_keys(["sae.k=1,2", "seed=3"]) == ["sae.k"]


@pytest.mark.parametrize("override", ["optim.lr=interval(1e-4,1e-3)", "llm=glob(*)"])
def test_a_sweep_without_a_list_of_values_is_refused(override):
    with pytest.raises(ConfigError, match="list the values") as caught:
        expand([override])
    assert "\n" not in str(caught.value)


def test_a_frozen_config_reads_back_equal(tmp_path):
    cfg = resolve(composed("debug=tiny", "tokens.path=a: b #c", "optim.lr=1e-3"), None, 96)
    save_config(cfg, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == cfg


@pytest.mark.parametrize(
    "content",
    ["sae: {num_latnts: 3}", "sae: {k: x}", "a: [", "- 1", "name: run", "name: run\ntrain_tokens: much"],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, content):
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match="config.yaml"):
        load_config(tmp_path / "config.yaml")


@pytest.mark.parametrize(
    ("listed", "single"),
    [
        ("grid.k=[4,8]", "sae.k=4"),
        ("grid.num_latents=[64,128]", "sae.expansion=4"),
        ("grid.seed=[0,1]", "sae.seed=2"),
    ],
)
def test_a_grid_and_one_of_its_keys_are_not_both_given(listed, single):
    with pytest.raises(ConfigError) as failure:
        compose_config([single, listed])
    assert str(failure.value) == f"{listed} and {single} are both given; give one"


def test_your_own_conf_adds_options(tmp_path, monkeypatch):
    (tmp_path / "conf" / "cluster").mkdir(parents=True)
    (tmp_path / "conf" / "cluster" / "mysite.yaml").write_text("# A partition.\npartition: wide\n")
    monkeypatch.chdir(tmp_path)
    assert compose_config(["cluster=mysite"]).cluster.partition == "wide"
    assert {"mysite", "default"} <= set(
        groups()["cluster"]
    ) and "    mysite: A partition." in groups_in_words()


def test_nothing_stays_of_the_config_before(tmp_path, monkeypatch):
    """Neither a value that it was given, nor a file that has changed since."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "conf" / "cluster" / "mine.yaml"
    file.parent.mkdir(parents=True)
    for number, partition in enumerate(("first", "second")):
        file.write_text(f"partition: {partition}\n")
        os.utime(file, ns=(number, number))
        found = composed("cluster=mine", "sae.k=4")
        assert (found.cluster.partition, found.sae.k) == (partition, 4)
        assert composed("cluster=mine").sae.k == 32
