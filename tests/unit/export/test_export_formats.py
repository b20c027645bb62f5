"""Exports in the layouts of three libraries: written by tiles, read back, refused where they differ."""

import json
import multiprocessing
import pickle
import resource
import zipfile
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.export import exported, sliced
from sae_dist.export.dictionary_learning import load_dictionary_learning
from sae_dist.export.exported import OF_LATENTS
from sae_dist.export.formats import FORMATS, WRITTEN, check_format, write
from sae_dist.export.names import format_of
from sae_dist.export.sparsify import load_sparsify
from tests.helpers.dictionaries import FORMS, KINDS, D, F, K, dense_codes, dense_output, random_sae

MADE = [
    *(("saelens", kind, form) for kind in KINDS for form in FORMS),
    *(("sparsify", "topk", form) for form in FORMS),
    *(("dictionary_learning", kind, "autoencoder") for kind in (*KINDS, "batchtopk", "matryoshka")),
    *(("circuit_tracer", kind, form) for kind in ("relu", "jumprelu") for form in FORMS[1:]),
]
CLASSES = {
    "topk": ("AutoEncoderTopK", "TopKTrainer"),
    "relu": ("AutoEncoder", "StandardTrainer"),
    "jumprelu": ("JumpReluAutoEncoder", "JumpReluTrainer"),
    "gated": ("GatedAutoEncoder", "GatedSAETrainer"),
    "batchtopk": ("BatchTopKSAE", "BatchTopKTrainer"),
    "matryoshka": ("MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer"),
}
"""Those of dictionary_learning, and its trainers, by which SAEBench finds the class."""
MLP = {"model_name": "gpt2", "hook_name": "h.3.mlp:in", "hook_name_out": "h.3.mlp"}


def make(kind, form="autoencoder", **sizes):
    """A dictionary of a kind that is trained."""
    used = {"batchtopk": "jumprelu", "matryoshka": "jumprelu"}.get(kind, kind)
    sae = random_sae(used, form, **({"out": D} | sizes))
    sae.metadata = {"hook_name": "h"} if form == "autoencoder" else dict(MLP)
    if kind != used:
        sae.trained_as, sae.metadata = kind, {"training_k": K, "hook_name": "model.layers.3"}
        sae.threshold_F.fill_(0.8)
    if kind == "matryoshka":
        sae.metadata["matryoshka_prefixes"] = [F // 4, F // 2, F]
    return sae


def is_whole(folder, name):
    """Whether a folder has the files of a format, lists of checksums, and no others."""
    found = sorted(path.name for path in folder.iterdir() if path.suffix != ".sha256")
    patterns = sorted(FORMATS[name].files)
    return len(found) == len(patterns) and all(map(fnmatch, found, patterns))


@pytest.mark.parametrize(("name", "kind", "form"), MADE)
@pytest.mark.parametrize("tile_bytes", [1, 4 * D * 7, 1 << 20])
def test_what_is_written_by_tiles_computes_the_same_when_it_is_read(
    tmp_path, monkeypatch, name, kind, form, tile_bytes
):
    monkeypatch.setattr(exported, "WRITTEN_BYTES", tile_bytes)
    sae = make(kind, form)
    check_format(name, sae)
    FORMATS[name].write(tmp_path / "export", sae)
    assert format_of(tmp_path / "export") == name
    back = FORMATS[name].read(tmp_path / "export")
    x = 2 * torch.randn(64, D)
    # JumpReluAutoEncoder has W_enc b_dec in its bias: a sum in another order.
    exact = 0.0 if kind != "jumprelu" or name != "dictionary_learning" else 1e-5
    torch.testing.assert_close(dense_codes(back, x), dense_codes(sae, x), atol=exact, rtol=0)
    torch.testing.assert_close(dense_output(back, x), dense_output(sae, x), atol=exact, rtol=0)
    assert (back.kind, back.k, back.transcoder) == (sae.kind, sae.k, sae.transcoder)
    assert back.trained_as == sae.trained_as
    for key, value in sae.metadata.items():
        assert back.metadata[key] == value
    assert is_whole(tmp_path / "export", name)


@pytest.mark.parametrize("kind", CLASSES)
def test_dictionary_learning_has_a_class_for_every_autoencoder(tmp_path, kind):
    FORMATS["dictionary_learning"].write(tmp_path, make(kind))
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert (trainer["dict_class"], trainer["trainer_class"]) == CLASSES[kind]
    assert (trainer["activation_dim"], trainer["dict_size"]) == (D, F)
    assert ("k" in trainer) == (kind in ("topk", "batchtopk", "matryoshka"))
    if kind == "matryoshka":
        state = torch.load(tmp_path / "ae.pt", weights_only=True)
        assert state["group_sizes"].tolist() == [F // 4, F // 4, F // 2] and trainer["layer"] == 3


def test_relu_rows_that_its_class_would_change_have_another_class(tmp_path):
    sae = make("relu")
    sae.W_dec_FE *= torch.linspace(0.5, 2, F)[:, None]
    FORMATS["dictionary_learning"].write(tmp_path, sae)
    trainer = json.loads((tmp_path / "config.json").read_text())["trainer"]
    assert trainer["dict_class"] == "AutoEncoderNew"
    assert trainer["trainer_class"] == "StandardTrainerAprilUpdate"
    x = 2 * torch.randn(64, D)
    back = load_dictionary_learning(tmp_path)
    torch.testing.assert_close(dense_codes(back, x), dense_codes(sae, x), atol=1e-5, rtol=0)


def test_an_auto_encoder_of_theirs_gets_unit_rows_as_their_loader_gives_it(tmp_path):
    sae = make("relu")
    FORMATS["dictionary_learning"].write(tmp_path, sae)
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    state["decoder.weight"] *= 3
    torch.save(state, tmp_path / "ae.pt")
    back = load_dictionary_learning(tmp_path)
    torch.testing.assert_close(back.W_dec_FE, sae.W_dec_FE)
    torch.testing.assert_close(back.W_enc_FD, 3 * sae.W_enc_FD)


@pytest.mark.parametrize(
    ("name", "kind", "form", "says"),
    [
        ("sparsify", "relu", "autoencoder", "a relu dictionary, only topk.*saelens or dictionary_learning"),
        ("sparsify", "matryoshka", "autoencoder", "a matryoshka dictionary, only topk"),
        ("dictionary_learning", "topk", "skip", "transcoders, only autoencoders; .*saelens or sparsify"),
        (
            "dictionary_learning",
            "jumprelu",
            "transcoder",
            "transcoders, only autoencoders; use --format saelens or circuit_tracer$",
        ),
        ("circuit_tracer", "relu", "autoencoder", "autoencoders, only transcoders"),
        ("circuit_tracer", "topk", "skip", "a topk dictionary, only relu, jumprelu, batchtopk and"),
        ("gemma_scope", "jumprelu", "autoencoder", "what this program trained: it is only read"),
    ],
)
def test_a_kind_that_a_format_has_not(name, kind, form, says):
    with pytest.raises(ConfigError, match=f"--format {name} cannot hold {says}"):
        check_format(name, make(kind, form))


def test_sparsify_has_one_width_only():
    with pytest.raises(ConfigError, match="from 12 to 9 dimensions, only between equal widths"):
        check_format("sparsify", make("topk", "transcoder", out=9))


def change_json(path, **values):
    content = json.loads(path.read_text())
    for key, value in values.items():
        content.pop(key) if value is None else content.update({key: value})
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"d_in": None}, "cfg.json has no key d_in"),
        ({"k": None}, "cfg.json has no key k"),
        ({"num_latents": 0, "expansion_factor": None}, "has no key expansion_factor"),
        ({"num_latents": F + 1}, rf"encoder.weight has shape \[{F}, {D}\], cfg.json says \[{F + 1}, {D}\]$"),
        ({"activation": "groupmax"}, "activation=groupmax is not supported"),
        ({"signed": True}, "signed=true is not supported"),
        ({"skip_connection": True}, "skip_connection=true is supported with transcode=true only"),
        ({"skip_connection": True, "transcode": True}, "has no tensor W_skip; it has W_dec, b_dec"),
    ],
)
def test_sparsify_files_that_are_wrong_or_mean_something_else(tmp_path, values, says):
    FORMATS["sparsify"].write(tmp_path, make("topk"))
    change_json(tmp_path / "cfg.json", **values)
    with pytest.raises(ConfigError, match=says):
        load_sparsify(tmp_path)


def test_weights_that_are_transposed_or_missing(tmp_path):
    FORMATS["sparsify"].write(tmp_path, make("topk"))
    path = tmp_path / "sae.safetensors"
    weights = load_file(path)
    save_file(weights | {"W_dec": weights["W_dec"].T.contiguous()}, path)
    with pytest.raises(ConfigError, match=rf"W_dec has shape \[{D}, {F}\].*; it is transposed"):
        load_sparsify(tmp_path)
    path.unlink()
    with pytest.raises(
        ConfigError, match="sae.safetensors does not exist; give a folder with cfg.json and sae"
    ):
        load_sparsify(tmp_path)


def test_widths_from_an_expansion_factor(tmp_path):
    sae = make("topk", F=3 * D)
    FORMATS["sparsify"].write(tmp_path, sae)
    change_json(tmp_path / "cfg.json", num_latents=0, expansion_factor=3)
    assert torch.equal(load_sparsify(tmp_path).W_enc_FD, sae.W_enc_FD)


class Planted:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_but_tensors_is_unpickled(tmp_path, capsys):
    FORMATS["dictionary_learning"].write(tmp_path, make("topk"))
    for content in (pickle.dumps(Planted()), b"no file of torch's"):
        (tmp_path / "ae.pt").write_bytes(content)
        with pytest.raises(ConfigError, match="nothing else in it is unpickled") as refusal:
            load_dictionary_learning(tmp_path)
        assert "\n" not in str(refusal.value)
    torch.save({"weights": Planted()}, tmp_path / "ae.pt")
    with pytest.raises(ConfigError, match="nothing else in it is unpickled"):
        load_dictionary_learning(tmp_path)
    assert capsys.readouterr().out == ""


def test_dictionary_learning_files_that_are_wrong_or_mean_something_else(tmp_path):
    FORMATS["dictionary_learning"].write(tmp_path, make("matryoshka"))
    state = torch.load(tmp_path / "ae.pt", weights_only=True)
    cases = [
        (
            {name: t for name, t in state.items() if name != "b_enc"},
            "ae.pt has no tensor b_enc; it has W_dec",
        ),
        (state | {"W_enc": state["W_enc"].T}, r"W_enc has shape \[40, 12\].*; it is transposed"),
        (
            state | {"group_sizes": torch.tensor([3, 4])},
            "group_sizes must be .* add up to dict_size=40",
        ),
        ({"step": 3, "ae": state}, r"not a state dict of tensors \(step, ae\)"),
        ([1, 2], r"not a state dict of tensors \(list\)"),
    ]
    for content, says in cases:
        torch.save(content, tmp_path / "ae.pt")
        with pytest.raises(ConfigError, match=says):
            load_dictionary_learning(tmp_path)
    change_json(tmp_path / "config.json", trainer={"dict_class": "GDM", "activation_dim": 1, "dict_size": 1})
    with pytest.raises(ConfigError, match="dict_class=GDM is not supported, only AutoEncoder, "):
        load_dictionary_learning(tmp_path)
    change_json(tmp_path / "config.json", trainer={"dict_class": "AutoEncoder"})
    with pytest.raises(ConfigError, match="config.json has no key activation_dim"):
        load_dictionary_learning(tmp_path)


def test_the_format_of_a_folder(tmp_path):
    with pytest.raises(ConfigError, match="nowhere is not a folder; give one with sae_weights.safetensors"):
        format_of(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="contains none of sae_weights.safetensors"):
        format_of(tmp_path)
    for name in ("saelens", "sparsify", "dictionary_learning"):
        FORMATS[name].write(tmp_path, make("topk"))
    with pytest.raises(ConfigError, match="contains the files of several formats; choose one with --format"):
        format_of(tmp_path)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_disk_that_takes_no_more_leaves_the_export_before(tmp_path, monkeypatch, name):
    kind = ("relu", "transcoder") if name == "circuit_tracer" else ("topk",)
    first, second = make(*kind), make(*kind)
    second.W_enc_FD = second.W_enc_FD + 1
    FORMATS[name].write(tmp_path, first)

    def full(*_):
        raise OSError(28, "No space left on device")

    for broken in ("pwrite", "posix_fallocate"):
        with monkeypatch.context() as patch:
            patch.setattr(sliced.os, broken, full)
            with pytest.raises(SaeDistError, match="No space left on device; make room and export again"):
                FORMATS[name].write(tmp_path, second)
        assert torch.equal(FORMATS[name].read(tmp_path).W_enc_FD, first.W_enc_FD)
        assert is_whole(tmp_path, name)


def _write_with_a_limit(name, folder, sae, limit, said):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write(name, folder, sae)
    except SaeDistError as error:
        said.put(str(error))
    else:
        said.put("written")


@pytest.mark.parametrize("name", WRITTEN)
def test_a_limit_on_the_size_of_files_is_named(tmp_path, name):
    sae = make(*(("relu", "transcoder") if name == "circuit_tracer" else ("topk",)))
    fork = multiprocessing.get_context("fork")
    for limit in (100, 3000):  # in the header, or among the weights
        said = fork.Queue()
        writer = fork.Process(target=_write_with_a_limit, args=(name, tmp_path / "out", sae, limit, said))
        writer.start()
        text = said.get(timeout=60)
        writer.join()
        assert "File too large; raise the limit on the size of files (ulimit -f) and export again" in text
        assert text.startswith(f"cannot write {tmp_path / 'out'}") and "\n" not in text
        assert list((tmp_path / "out").iterdir()) == []


def test_a_torch_file_is_a_sound_archive(tmp_path):
    FORMATS["dictionary_learning"].write(tmp_path, make("gated"))
    with zipfile.ZipFile(tmp_path / "ae.pt") as archive:
        assert archive.testzip() is None


def test_a_tile_has_the_latents_of_its_slice_only():
    sae = make("gated", "skip")
    part = sae.tile(slice(3, 10))
    for name in OF_LATENTS:
        whole = getattr(sae, name)
        assert whole is None or torch.equal(getattr(part, name), whole[3:10])
    assert part.b_dec_E is sae.b_dec_E and part.W_skip_ED is sae.W_skip_ED
