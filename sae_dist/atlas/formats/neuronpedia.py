"""An atlas as an export folder of Neuronpedia: JSON lines of its tables, in batches, gzipped.

Keys are the columns of Neuronpedia's database. What an atlas does not know, such as correlated neurons, is
left empty. A row of activations is a context; one that is among the greatest codes has the bin -1 to the
greatest code, one that was drawn the bounds of its bin and the share of codes in it.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sae_dist.atlas.formats.names import Names
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.labels import Label
from sae_dist.atlas.read.rows import Example, Latent
from sae_dist.atlas.schema import TOP
from sae_dist.core.errors import ConfigError

BATCH = 1024
"""Features of a file."""
CREATOR = "clkht01d40000jv08hvalcvly"
"""The user that Neuronpedia's own installation brings along; rows must belong to one."""
PUBLIC = "PUBLIC"
LEVEL = 5


def write_neuronpedia(atlas: Atlas, names: Names, out: Path, latents: list[int]) -> None:
    """Write `MODEL/LAYER-SET/` into a folder.

    Raises:
        ConfigError: tokens have no text here.
    """
    if atlas.words.lacking is not None:
        raise ConfigError(f"neuronpedia needs the text of tokens, which is not here: {atlas.words.lacking}")
    folder = out / names.model / names.source
    for name in ("features", "activations", "explanations"):
        (folder / name).mkdir(parents=True)
    for name, row in about(atlas, names).items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    for number, first in enumerate(range(0, len(latents), BATCH)):
        features, activations = [], []
        for latent in latents[first : first + BATCH]:
            described, examples = atlas.latent(latent), atlas.examples(latent)
            features.append(feature(described, names))
            activations += [activation(described, each, names) for each in examples]
        _write_lines(folder / "features" / f"batch-{number}.jsonl.gz", features)
        _write_lines(folder / "activations" / f"batch-{number}.jsonl.gz", activations)
    chosen = set(latents)
    labels = [each for each in atlas.labels.all() if each.latent in chosen and each.state != "rejected"]
    for number, first in enumerate(range(0, len(labels), BATCH)):
        rows = [explanation(each, names) for each in labels[first : first + BATCH]]
        _write_lines(folder / "explanations" / f"batch-{number}.jsonl.gz", rows)


def about(atlas: Atlas, names: Names) -> dict[str, dict[str, Any]]:
    """Return the rows about release, model, set and source, by the name of their file."""
    facts, context = atlas.facts, atlas.facts["context"] or 0
    words = f"{facts['kind']} dictionary of {facts['num_latents']:,} latents at {facts['hook']}"
    made, owner = {"createdAt": names.date}, {"creatorId": CREATOR, "visibility": PUBLIC}
    return {
        "release": {
            "name": names.set,
            "description": words,
            "descriptionShort": words,
            "urls": [],
            "creatorName": names.set,
            "creatorNameShort": names.set,
            "defaultSourceSetName": names.set,
            "defaultSourceId": names.source,
            **owner,
            **made,
        },
        "model": {
            "id": names.model,
            "instruct": False,
            "displayName": names.model_path,
            "displayNameShort": names.model,
            "updatedAt": names.date,
            **owner,
            **made,
        },
        "sourceset": {
            "modelId": names.model,
            "name": names.set,
            "description": words,
            "type": names.hook,
            "creatorName": names.set,
            "releaseName": names.set,
            "urls": [],
            "hasDashboards": True,
            **owner,
            **made,
        },
        "source": {
            "id": names.source,
            "modelId": names.model,
            "setName": names.set,
            "hasDashboards": True,
            "inferenceEnabled": False,
            "num_prompts": facts["documents"],
            "num_tokens_in_prompt": context,
            "dataset": names.dataset,
            "notes": f"{facts['kept']:,} tokens of {facts['text']}",
            **owner,
            **made,
        },
    }


def feature(about: Latent, names: Names) -> dict[str, Any]:
    """Return the row of a feature: rate, histogram of codes, effects on logits, nearest decoder rows."""
    width = about.most / max(len(about.histogram), 1)
    bars = [count for count in about.histogram] if about.count else []
    empty = ("indices", "values", "l1"), ("indices", "pearson", "l1"), ("indices", "pearson", "l1")
    kinds = ("neuron_alignment", "correlated_neurons", "correlated_features")
    return {
        "modelId": names.model,
        "layer": names.source,
        "index": str(about.latent),
        "sourceSetName": names.set,
        "creatorId": CREATOR,
        "createdAt": names.date,
        "maxActApprox": about.most,
        "hasVector": False,
        "vector": [],
        "vectorLabel": None,
        "vectorDefaultSteerStrength": about.most or None,
        "hookName": names.hook,
        "topkCosSimIndices": [each.latent for each in about.near or ()],
        "topkCosSimValues": [each.cosine for each in about.near or ()],
        **{f"{kind}_{key}": [] for kind, keys in zip(kinds, empty, strict=True) for key in keys},
        "neg_str": [text(each.text) for each in about.down or ()],
        "neg_values": [each.logit for each in about.down or ()],
        "pos_str": [text(each.text) for each in about.up or ()],
        "pos_values": [each.logit for each in about.up or ()],
        "frac_nonzero": about.rate,
        "freq_hist_data_bar_heights": bars,
        "freq_hist_data_bar_values": [width * (number + 0.5) for number in range(len(bars))],
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
        "decoder_weights_dist": [],
    }


def activation(about: Latent, example: Example, names: Names) -> dict[str, Any]:
    """Return the row of a context."""
    tokens = example.context.tokens
    values = [each.code for each in tokens]
    most = max(values)
    low, high = bounds(about, example.bin)
    share = -1.0 if example.bin == TOP else about.bins[example.bin] / about.count
    key = f"{names.model}/{names.source}/{about.latent}/{example.bin}/{example.rank}"
    return {
        "id": f"c{hashlib.sha256(key.encode()).hexdigest()[:24]}",
        "tokens": [text(each.text) for each in tokens],
        "dataIndex": str(example.context.document),
        "index": str(about.latent),
        "layer": names.source,
        "modelId": names.model,
        "dataSource": names.dataset,
        "maxValue": most,
        "maxValueTokenIndex": values.index(most),
        "minValue": min(values),
        "values": values,
        "dfaValues": [],
        "dfaTargetIndex": None,
        "dfaMaxValue": None,
        "creatorId": CREATOR,
        "createdAt": names.date,
        "lossValues": [],
        "logitContributions": None,
        "binMin": low,
        "binMax": high,
        "binContains": share,
        "qualifyingTokenIndex": [each.at for each in tokens].index(example.context.at),
    }


def bounds(about: Latent, bin: int) -> tuple[float, float]:
    """Return the least and the greatest code of a bin; of the greatest codes -1 and the greatest."""
    if bin == TOP:
        return -1.0, about.most
    low = 0.0 if bin == len(about.bins) - 1 else about.most * 0.5 ** (bin + 1)
    return low, about.most * 0.5**bin


def explanation(label: Label, names: Names) -> dict[str, Any]:
    """Return the row of a label."""
    key = f"{names.model}/{names.source}/{label.latent}/{label.date}/{label.text}"
    return {
        "id": f"c{hashlib.sha256(key.encode()).hexdigest()[:24]}",
        "modelId": names.model,
        "layer": names.source,
        "index": str(label.latent),
        "description": text(label.text),
        "authorId": CREATOR,
        "typeName": None,
        "explanationModelName": None,
        "notes": f"{label.state}; {label.author}",
        "createdAt": names.date,
    }


def text(words: str) -> str:
    """Return text without what a database does not store: zeros and halves of surrogate pairs."""
    return words.encode("utf-8", "replace").decode().replace("\0", " ")


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    # Without the time and name that gzip puts in: the same atlas gives the same bytes.
    with open(path, "wb") as file, gzip.GzipFile("", "wb", LEVEL, file, mtime=0) as packed:
        for row in rows:
            packed.write(json.dumps(row, allow_nan=False).encode() + b"\n")
