"""Values of files: plain, typed, bounded; refused before anything is made of them."""

import time

import pytest

from sae_dist.config.plain import DEEPEST, LARGEST_BYTES, read_yaml, write_yaml
from sae_dist.config.resolve import resolve
from sae_dist.config.run import flat, load_config, save_config
from sae_dist.config.validate import validate
from sae_dist.core.errors import ConfigError
from sae_dist.launch.compose import compose_config

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join(9 * ['*' + before])}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A frozen config.yaml."""
    path = tmp_path_factory.mktemp("run") / "config.yaml"
    save_config(resolve(compose_config(["name=run", "sae.num_latents=64"]), None, 8), path)
    return path.read_text()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (BOMB, "anchors or aliases"),
        ("a: &a 1\n", "anchors or aliases"),
        ("a: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "nested more than"),
        ("a: " + "[" * 200_000, "nest"),
        ("a: [" + "1," * 400_000 + "]", "more than 300000 values"),
        ("x" * (LARGEST_BYTES + 1), "characters, at most"),
        ("a: 1\na: 2\n", "a key is there twice"),
        ("a: !!python/object/apply:os.system [touch marker]", "could not determine a constructor"),
        ("a: \x00", "special characters are not allowed|unacceptable character"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_at_once(bad, says):
    begun = time.process_time()
    with pytest.raises(ValueError, match=says) as caught:
        read_yaml(bad)
    assert time.process_time() - begun < 2 and "\n" not in str(caught.value)


def test_values_come_back_as_they_were():
    values = {
        "a": "1e3",
        "b": 1e-20,
        "c": "${oc.env:HOME}",
        "d": "2026-11-30",
        "e": ["x", None, True, "12:30:00"],
    }
    assert read_yaml(write_yaml(values)) == values
    assert read_yaml("a: 1e-3") == {"a": 1e-3}


def test_an_interpolation_is_text(text, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVATE", "of-the-reader")
    path = tmp_path / "config.yaml"
    path.write_text(text.replace("project: sae_dist", "project: '${oc.env:PRIVATE}'"))
    assert load_config(path).metrics.project == "${oc.env:PRIVATE}"
    save_config(load_config(path), path)
    assert (
        "of-the-reader" not in path.read_text() and load_config(path).metrics.project == "${oc.env:PRIVATE}"
    )
    from sae_dist.metrics.wandb_sink import _config

    assert _config(load_config(path))["metrics"]["project"] == "${oc.env:PRIVATE}"


@pytest.mark.parametrize(
    ("line", "other", "says"),
    [
        ("batch: 2048", "batch: '${seed}'", "batch=.* has the wrong type"),
        ("batch: 2048", "batch: 1e21", "batch=.* has the wrong type"),
        ("batch: 2048", f"batch: {10**30}", "batch=.* is too large"),
        ("batch: 2048", f"batch: {'9' * 5000}", "config.yaml is not the config of a run"),
        ("lanes: 48", "lanes: 1000000000", "shuffle.lanes=.* is too large"),
        ("num_latents: 64", "num_latents: 1099511627776", "sae.num_latents=.* is too large"),
        ("kind: topk", "kind: os.path", "sae.kind=os.path is not one of"),
        ("attn: null", "attn: evil/kernel", "llm.attn=evil/kernel is not one of"),
        ("name: run", 'name: "a\\ntouch X"', "name=.* has the control character"),
        ("name: run", 'name: "a\\u202eb"', "control character"),
        ("clip: 1.0", "clip: .inf", "no finite number"),
        ("clip: 1.0", "clip: 1.0e+300", "optim.clip=.* is too large"),
        ("timeout_s: 600.0", "timeout_s: 1.0e+20", "topology.timeout_s=.* is too large"),
        ("telemetry_s: 5.0", "telemetry_s: 1.0e+20", "metrics.telemetry_s=.* is too large"),
        ("seed: 0", "seed: no", "wrong type"),
        ("resume: never", "resume: never\n_target_: os.system", "_target_ is not a key"),
    ],
)
def test_a_frozen_config_that_does_not_fit(text, tmp_path, line, other, says):
    assert line in text
    path = tmp_path / "config.yaml"
    path.write_text(text.replace(line, other, 1))
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_a_matrix_of_petabytes_is_refused_before_it_is_made(text, tmp_path):
    path = tmp_path / "config.yaml"
    for line, number in (("num_features: null", 2**32), ("  width: null", 2**24)):
        assert line in text
        text = text.replace(line, line.replace("null", str(number)), 1)
    path.write_text(text)
    with pytest.raises(ConfigError, match="num_features times activations.width is too large"):
        load_config(path)


def test_a_grid_of_millions_is_refused_before_it_is_laid_out(text, tmp_path):
    path = tmp_path / "config.yaml"
    lists = {key: list(range(1, 1001)) for key in ("num_latents", "k", "seed")}
    grid = text[text.index("grid:") : text.index("metrics:")]
    path.write_text(text.replace(grid, write_yaml({"grid": lists})))
    with pytest.raises(ConfigError, match="grid has 1000000000 dictionaries"):
        load_config(path)
    words = [f"grid.{key}={[*range(1, 101)]}".replace(" ", "") for key in ("k", "seed")]
    with pytest.raises(ConfigError, match="grid has 10000 dictionaries; at most"):
        validate(compose_config(words))


@pytest.mark.parametrize("sign", ["\n", "\r", "\x1b", "\x00", "\x85", "\u2028", "\u2029", "\u202e", "\u2066"])
def test_control_characters_are_refused_in_every_text(sign):
    cfg = compose_config([])
    for key in ("name", "output"):
        setattr(cfg, key, f"a{sign}b")
        with pytest.raises(ConfigError, match=f"{key}=.* has the control character") as caught:
            validate(cfg)
        assert sign not in str(caught.value)
        setattr(cfg, key, "a")
    assert all(sign not in str(value) for value in flat(cfg).values())
