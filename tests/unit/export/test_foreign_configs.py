"""Configs that other programs wrote: any value of any key is read, or refused in one line with its file."""

import copy
import json
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError
from sae_dist.export.importing import Imported
from sae_dist.export.keys import COUNT, SIZE, SIZES, checked
from tests.helpers.dictionaries import D, unlisted
from tests.unit.export.test_export_formats import FORMATS, F, K, make

BASES = {
    "saelens": ("cfg.json", "topk", {}),
    "saelens before 6": (
        "cfg.json",
        "topk",
        {
            "metadata": None,
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": K},
            "hook_point": "h",
            "context_size": 8,
            "finetuning_scaling_factor": False,
        },
    ),
    "saelens jumprelu": ("cfg.json", "batchtopk", {}),
    "sparsify": ("cfg.json", "topk", {"signed": False}),
    "dictionary_learning": ("config.json", "matryoshka", {}),
    "dictionary_learning topk": ("config.json", "topk", {"metadata": None}),
}
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([0, 1, F, D, K, "topk", "relu", "none"])
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of each base, and its config."""
    found = {}
    for name, (config, kind, changes) in BASES.items():
        folder = tmp_path_factory.mktemp("base")
        FORMATS[name.split()[0]].write(folder, make(kind))
        unlisted(folder)
        content = json.loads((folder / config).read_text()) | changes
        found[name] = folder, config, {key: value for key, value in content.items() if value is not None}
    return found


def paths(content, within=()):
    """Every key of nested objects, as the path to it."""
    for key, value in content.items():
        yield (*within, key)
        if isinstance(value, dict):
            yield from paths(value, (*within, key))


def with_value(content, path, value):
    content = copy.deepcopy(content)
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return content


@pytest.mark.parametrize("name", BASES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_key_is_read_or_refused_by_name(written, name, data):
    folder, config, content = written[name]
    path = data.draw(st.sampled_from(sorted(paths(content))))
    (folder / config).write_text(json.dumps(with_value(content, path, data.draw(VALUES))))
    try:
        imported = Imported.read(folder, name.split()[0])
    except ConfigError as error:
        said = str(error)
        assert "\n" not in said and (config in said or "ae.pt" in said or ".safetensors" in said)
    else:
        assert imported.says()["sae.num_latents"] == F
        json.dumps(imported.sae.metadata)


BAD = [
    ("saelens", ("k",), "5", "cfg.json: k='5' must be a number above 0"),
    ("saelens", ("k",), True, "cfg.json: k=True must be a number"),
    ("saelens", ("k",), float("nan"), "cfg.json: k=nan must be a number"),
    ("saelens", ("k",), 2.5, "cfg.json: k=2.5 must be a whole number from 1 to the 40 latents"),
    ("saelens", ("k",), 41, "cfg.json: k=41 must be a whole number from 1 to the 40 latents"),
    ("saelens", ("k",), None, "cfg.json has no key k"),
    ("saelens", ("d_in",), -12, "cfg.json: d_in=-12 must be a whole number above 0"),
    ("saelens", ("architecture",), ["topk"], r"cfg.json: architecture=\['topk'\] must be text"),
    ("saelens", ("metadata",), "none", "cfg.json: metadata='none' must be an object of keys"),
    ("saelens", ("metadata", "hook_name"), 3, "cfg.json: metadata.hook_name=3 must be text"),
    ("saelens", ("apply_b_dec_to_input",), 1, "cfg.json: apply_b_dec_to_input=1 must be true or false"),
    ("saelens before 6", ("activation_fn_kwargs",), {}, "no key activation_fn_kwargs.k"),
    ("saelens before 6", ("activation_fn_kwargs",), None, "no key activation_fn_kwargs.k"),
    ("sparsify", ("k",), [5], r"cfg.json: k=\[5\] must be a whole number above 0"),
    ("sparsify", ("transcode",), "no", "cfg.json: transcode='no' must be true or false"),
    ("sparsify", ("num_latents",), -1, "cfg.json: num_latents=-1 must be a whole number, 0 or more"),
    ("dictionary_learning", ("trainer",), None, "config.json has no key trainer"),
    ("dictionary_learning", ("trainer", "dict_size"), "40", "config.json: trainer.dict_size='40' must be"),
    ("dictionary_learning", ("trainer", "dict_class"), {}, "config.json: trainer.dict_class={} must be text"),
]


@pytest.mark.parametrize(
    ("name", "path", "value", "says"), BAD, ids=[f"{r[0]} {r[1][-1]} {r[2]}" for r in BAD]
)
def test_a_key_of_another_type_is_named_with_its_file(written, name, path, value, says):
    folder, config, content = written[name]
    if name == "saelens before 6" and "k" in content:
        content = {key: each for key, each in content.items() if key != "k"}
    (folder / config).write_text(json.dumps(with_value(content, path, value)))
    with pytest.raises(ConfigError, match=says) as refusal:
        Imported.read(folder, name.split()[0])
    assert str(folder / config) in str(refusal.value)


@pytest.mark.parametrize("name", ["saelens", "sparsify", "dictionary_learning"])
def test_files_as_editors_and_programs_leave_them(written, name):
    folder, config, content = written[name]
    text = json.dumps(content)
    (folder / config).write_text(text, encoding="utf-8-sig")
    Imported.read(folder, name)
    for broken, says in (
        (text[:-1] + ', "d_in": 3, "d_in": 3}', "the key d_in is there twice"),
        (text[:-1], "is not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("[1]", "holds no keys"),
        ("\0", "is not JSON"),
    ):
        (folder / config).write_text(broken)
        with pytest.raises(ConfigError, match=says) as refusal:
            Imported.read(folder, name)
        assert "\n" not in str(refusal.value) and config in str(refusal.value)
    (folder / config).write_bytes(b"\xff\xfe{}")
    with pytest.raises(ConfigError, match="is not JSON"):
        Imported.read(folder, name)


def test_metadata_that_is_null_is_none(written):
    folder, config, content = written["saelens"]
    (folder / config).write_text(json.dumps(content | {"metadata": None}))
    assert Imported.read(folder, "saelens").sae.k == K
    (folder / config).write_text(json.dumps(content | {"k": float(K)}))
    assert Imported.read(folder, "saelens").sae.k == K


def test_counts_become_integers_and_null_is_nothing(tmp_path):
    table = {"a": COUNT, "b": {"c": SIZE, "d": SIZES}}
    found = checked(tmp_path, {"a": 3.0, "b": {"c": 0, "d": [1, 2.0], "e": None}, "f": None}, table)
    assert found == {"a": 3, "b": {"c": 0, "d": [1, 2], "e": None}, "f": None}
    assert checked(tmp_path, {"a": None}, table) == {}
    with pytest.raises(ConfigError, match=r"b.d=\[2, 1\] must be a list of whole numbers that do not shrink"):
        checked(tmp_path, {"b": {"d": [2, 1]}}, table)


def test_a_pointer_of_git_lfs_is_not_the_file(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for name, files in FORMATS.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in files.files:
            (folder / file.replace("*", "0")).write_text(pointer)
        with pytest.raises(ConfigError, match=f"pointer of Git LFS.*git -C {folder} lfs pull"):
            Imported.read(folder, None)


def test_weights_in_several_files(tmp_path):
    sae = make("topk")
    FORMATS["sparsify"].write(tmp_path, sae)
    unlisted(tmp_path)
    path = tmp_path / "sae.safetensors"
    weights = load_file(path)
    places = {}
    for number, name in enumerate(weights):
        places[name] = f"sae-{number}.safetensors"
        save_file({name: weights[name]}, tmp_path / places[name])
    path.unlink()
    (tmp_path / "sae.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert Imported.read(tmp_path, None).sae.W_dec_FE.equal(sae.W_dec_FE)
    (tmp_path / "sae-1.safetensors").unlink()
    with pytest.raises(ConfigError, match="sae-1.safetensors does not exist"):
        Imported.read(tmp_path, None)
    shutil.copy(tmp_path / "sae-0.safetensors", tmp_path.parent / "outside.safetensors")
    places["W_dec"] = "../outside.safetensors"
    (tmp_path / "sae.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(ConfigError, match="names a file outside of its folder"):
        Imported.read(tmp_path, None)
