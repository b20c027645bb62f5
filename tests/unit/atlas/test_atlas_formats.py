"""An atlas in other tools' formats: their keys and types, and what the atlas says in them."""

import gzip
import json
import zlib

import numpy as np
import pytest
from jsonschema import Draft7Validator
from safetensors.numpy import load_file

from sae_dist.atlas.formats.write import FORMATS, write_format
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.facts import llm_facts
from sae_dist.tokens.decoder import Decoder
from tests.helpers.described import described

F = 300
NUMBERS = {"type": "array", "items": {"type": "number"}}
WORDS = {"type": "array", "items": {"type": "string"}}
WHOLES = {"type": "array", "items": {"type": "integer"}}
TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
MAYBE = {"type": ["string", "null"]}


def exactly(**keys):
    """The schema of an object with these keys and no others."""
    shape = {"type": "object", "properties": keys, "required": list(keys), "additionalProperties": False}
    return Draft7Validator(shape)


FEATURE = exactly(
    **dict.fromkeys(
        ("modelId", "layer", "index", "sourceSetName", "creatorId", "createdAt", "hookName"), TEXT
    ),
    maxActApprox=NUMBER,
    hasVector={"const": False},
    vector=NUMBERS,
    vectorLabel=MAYBE,
    vectorDefaultSteerStrength={"type": ["number", "null"]},
    frac_nonzero=NUMBER,
    neg_str=WORDS,
    pos_str=WORDS,
    **dict.fromkeys(
        ("topkCosSimIndices", *(f"{kind}_indices" for kind in ("neuron_alignment", "correlated_neurons")))
        + ("correlated_features_indices",),
        WHOLES,
    ),
    **dict.fromkeys(
        ("topkCosSimValues", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_pearson")
        + ("correlated_neurons_l1", "correlated_features_pearson", "correlated_features_l1", "neg_values")
        + ("pos_values", "freq_hist_data_bar_heights", "freq_hist_data_bar_values", "decoder_weights_dist")
        + ("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
        NUMBERS,
    ),
)
ACTIVATION = exactly(
    **dict.fromkeys(("id", "index", "layer", "modelId", "creatorId", "createdAt", "dataIndex"), TEXT),
    dataSource=TEXT,
    tokens=WORDS,
    values=NUMBERS,
    **dict.fromkeys(("maxValue", "minValue", "binMin", "binMax", "binContains"), NUMBER),
    **dict.fromkeys(("maxValueTokenIndex", "qualifyingTokenIndex"), WHOLE),
    dfaValues=NUMBERS,
    lossValues=NUMBERS,
    **dict.fromkeys(("dfaTargetIndex", "dfaMaxValue", "logitContributions"), {"type": "null"}),
)
EXPLANATION = exactly(
    **dict.fromkeys(
        ("id", "modelId", "layer", "index", "description", "authorId", "notes", "createdAt"), TEXT
    ),
    **dict.fromkeys(("typeName", "explanationModelName"), {"type": "null"}),
)
EXAMPLE = exactly(
    tokens_acts_list=NUMBERS, train_token_ind=WHOLE, is_repeated_datapoint={"const": False}, tokens=WORDS
)
GROUP = exactly(quantile_name=TEXT, examples={"type": "array", "items": EXAMPLE.schema})
TRACED = exactly(
    transcoder_id=TEXT,
    index=WHOLE,
    examples_quantiles={"type": "array", "items": GROUP.schema},
    top_logits=WORDS,
    bottom_logits=WORDS,
    act_min=NUMBER,
    act_max=NUMBER,
    quantile_values=NUMBERS,
    histogram=NUMBERS,
    activation_frequency=NUMBER,
)


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    decoder = Decoder(llm_facts(LlmConfig(name="embedded"), "layers.1:out")[0])
    made = described(tmp_path_factory.mktemp("runs") / "my run" / "atlas", F, documents=60)
    atlas = Atlas.open(made, decoder)
    atlas.labels.set(3, "quotation marks", "confirmed", "ann")
    atlas.labels.set(4, "wrong", "rejected", "ann")
    return atlas


def lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_neuronpedia(atlas, tmp_path):
    folder = write_format(atlas, "neuronpedia", tmp_path / "out") / "embedded" / "1-my-run"
    features, activations = (
        lines(folder / each / "batch-0.jsonl.gz") for each in ("features", "activations")
    )
    for row in features:
        FEATURE.validate(row)
    for row in activations:
        ACTIVATION.validate(row)
    (label,) = lines(folder / "explanations" / "batch-0.jsonl.gz")
    EXPLANATION.validate(label)
    assert (label["index"], label["description"]) == ("3", "quotation marks")
    assert [row["index"] for row in features] == [str(latent) for latent in range(F)]
    assert len({row["id"] for row in activations}) == len(activations)
    about, examples = atlas.latent(3), atlas.examples(3)
    row, own = features[3], [each for each in activations if each["index"] == "3"]
    assert (row["maxActApprox"], row["frac_nonzero"]) == (about.most, about.rate)
    assert row["pos_str"] == [each.text for each in about.up] and row["neg_values"] == [-1.5, -0.5]
    assert sum(row["freq_hist_data_bar_heights"]) == about.count
    assert len(row["freq_hist_data_bar_heights"]) == len(row["freq_hist_data_bar_values"])
    for each, example in zip(own, examples, strict=True):
        tokens = example.context.tokens
        assert each["values"] == [one.code for one in tokens] and len(each["tokens"]) == len(each["values"])
        assert each["values"][each["qualifyingTokenIndex"]] == example.code
        assert each["values"][each["maxValueTokenIndex"]] == each["maxValue"] == max(each["values"])
        inside = each["binMin"] < example.code <= each["binMax"]
        assert inside and (each["binMin"] == each["binContains"] == -1) == (example.bin == -1)
    shares = {each["binMin"]: each["binContains"] for each in own if each["binMin"] >= 0}
    assert sum(shares.values()) == pytest.approx(sum(about.bins[: len(shares)]) / about.count)
    about_source = json.loads((folder / "source.jsonl").read_text())
    assert about_source["id"] == row["layer"] == "1-my-run" and about_source["setName"] == "my-run"
    for name in ("release", "model", "sourceset"):
        (line,) = (folder / f"{name}.jsonl").read_text().splitlines()
        assert json.loads(line)["creatorId"] == row["creatorId"]


def test_circuit_tracer(atlas, tmp_path):
    folder = write_format(atlas, "circuit_tracer", tmp_path / "out", [3, 7]) / "features"
    index = json.loads(gzip.decompress((folder / "index.json.gz").read_bytes()))["1"]
    packed = (folder / index["filename"]).read_bytes()
    assert len(index["offsets"]) == F + 1 and index["offsets"][-1] == len(packed)
    for latent, number in ((3, 13), (7, 43)):  # (1 + 3)(1 + 4) / 2 + 3, (1 + 7)(1 + 8) / 2 + 7
        found = json.loads((folder / f"{number}.json").read_text())
        TRACED.validate(found)
        about = atlas.latent(latent)
        assert (found["index"], found["transcoder_id"], found["act_max"]) == (latent, "my-run", about.most)
        assert sum(found["histogram"]) == about.count and found["activation_frequency"] == about.rate
        every = [each for group in found["examples_quantiles"] for each in group["examples"]]
        codes = [each["tokens_acts_list"][each["train_token_ind"]] for each in every]
        assert codes == [each.code for each in atlas.examples(latent)]
        assert found["examples_quantiles"][0]["quantile_name"] == "Top activations"
        begin, end = index["offsets"][latent : latent + 2]
        size = int.from_bytes(packed[begin : begin + 4], "little")
        assert begin + 4 + size == end and json.loads(zlib.decompress(packed[begin + 4 : end])) == found
    assert index["offsets"][4] == index["offsets"][7], "latents that were not chosen have no bytes"
    assert len(list(folder.glob("*.json"))) == 2


@pytest.mark.parametrize("chosen", [None, [0, 3, 299]])
def test_delphi(atlas, tmp_path, chosen):
    folder = write_format(atlas, "delphi", tmp_path / "out", chosen) / "layers.1"
    config = json.loads((folder / "config.json").read_text())
    rows = config["n_tokens"] // config["cache_ctx_len"]
    assert rows == len(atlas.places) // 256 and config["model_name"] == "embedded"
    assert set(config) == set(
        "dataset_repo dataset_split dataset_name dataset_column batch_size cache_ctx_len n_tokens n_splits "
        "model_name".split()
    )
    token_T = atlas.places.stretch(0, len(atlas.places)).token_T
    found, end = {}, 0
    files = sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem.split("_")[0]))
    assert len(files) == config["n_splits"] == 5
    for path in files:
        first, last = map(int, path.stem.split("_"))
        assert first == end
        end = last + 1
        tensors = load_file(path)
        assert set(tensors) == {"locations", "activations", "tokens"}
        assert (tensors["locations"].dtype, tensors["activations"].dtype) == (np.uint16, np.float16)
        assert np.array_equal(tensors["tokens"].ravel(), token_T[: rows * 256])
        for (row, position, latent), code in zip(tensors["locations"], tensors["activations"], strict=True):
            found.setdefault(int(latent) + first, []).append((256 * int(row) + int(position), float(code)))
    assert end == F
    for latent in range(F):
        at, code = atlas.codes(latent)
        inside = at < rows * 256
        wanted = list(zip(at[inside].tolist(), code[inside].astype(np.float16).tolist(), strict=True))
        assert found.get(latent, []) == (wanted if chosen is None or latent in chosen else [])


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_atlas_gives_the_same_bytes(atlas, tmp_path, name):
    one, other = (write_format(atlas, name, tmp_path / each, [3, 5, 299]) for each in ("one", "other"))
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert all((one / each).read_bytes() == (other / each).read_bytes() for each in files)


def test_what_is_refused(atlas, tmp_path):
    with pytest.raises(ConfigError, match="format=saelens is unknown; the formats are neuronpedia"):
        write_format(atlas, "saelens", tmp_path / "out")
    with pytest.raises(ConfigError, match="latent 300 does not exist"):
        write_format(atlas, "delphi", tmp_path / "out", [300])
    with pytest.raises(ConfigError, match="no latent is chosen"):
        write_format(atlas, "delphi", tmp_path / "out", [])
    (tmp_path / "out").mkdir()
    write_format(atlas, "delphi", tmp_path / "out", [1])
    with pytest.raises(ConfigError, match="is there already; remove it"):
        write_format(atlas, "delphi", tmp_path / "out", [1])
    bare = Atlas.open(atlas.folder)
    for name in ("neuronpedia", "circuit_tracer"):
        with pytest.raises(ConfigError, match=f"{name} needs the text of tokens, which is not here"):
            write_format(bare, name, tmp_path / "new", [1])
    with pytest.raises(ConfigError, match="has no atlas"):
        write_format(tmp_path, "delphi")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["out"], "nothing is left half written"


def test_a_full_disk_leaves_nothing(atlas, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sae_dist.atlas.formats.delphi.write_tensors", full)
    with pytest.raises(OSError, match="No space left"):
        write_format(atlas, "delphi", tmp_path / "out", [1])
    assert list(tmp_path.iterdir()) == []
