"""An atlas as files of features for circuit-tracer's pages and Anthropic's: JSON for each latent.

A file is named by one number for layer and latent, x and y: (x + y)(x + y + 1) / 2 + y. Beside them all
features are in one file that a page reads parts of by their offsets, as it does from the Hugging Face Hub.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from sae_dist.atlas.formats.names import Names
from sae_dist.atlas.formats.neuronpedia import bounds, text
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.rows import Example, Latent
from sae_dist.atlas.schema import TOP
from sae_dist.core.errors import ConfigError

FOLDER, INDEX = "features", "index.json.gz"
LENGTH_BYTES = 4


def write_circuit_tracer(atlas: Atlas, names: Names, out: Path, latents: list[int]) -> None:
    """Write `features/NUMBER.json` for each latent, `features/layer_N.bin` and its index into a folder.

    Raises:
        ConfigError: tokens have no text here.
    """
    if atlas.words.lacking is not None:
        raise ConfigError(
            f"circuit_tracer needs the text of tokens, which is not here: {atlas.words.lacking}"
        )
    folder = out / FOLDER
    folder.mkdir()
    packed = f"layer_{names.layer}.bin"
    offsets, chosen = [0], set(latents)
    with open(folder / packed, "wb") as file:
        for latent in range(atlas.num_latents):
            if latent in chosen:
                row = feature(atlas.latent(latent), atlas.examples(latent), names)
                content = json.dumps(row, allow_nan=False).encode()
                (folder / f"{number_of(names.layer, latent)}.json").write_bytes(content)
                small = zlib.compress(content)
                file.write(len(small).to_bytes(LENGTH_BYTES, "little") + small)
            offsets.append(file.tell())
    index = {str(names.layer): {"filename": packed, "offsets": offsets}}
    (folder / INDEX).write_bytes(gzip.compress(json.dumps(index).encode(), mtime=0))


def number_of(layer: int, latent: int) -> int:
    """Return the number of a feature: Cantor's pairing of its layer and latent."""
    return (layer + latent) * (layer + latent + 1) // 2 + latent


def feature(about: Latent, examples: list[Example], names: Names) -> dict[str, Any]:
    """Return the content of a feature's file."""
    groups = []
    for number in sorted({each.bin for each in examples}):
        low, high = bounds(about, number)
        name = "Top activations" if number == TOP else f"Codes from {low:.3g} to {high:.3g}"
        own = [example(each) for each in examples if each.bin == number]
        groups.append({"quantile_name": name, "examples": own})
    return {
        "transcoder_id": names.set,
        "index": about.latent,
        "examples_quantiles": groups,
        "top_logits": [text(each.text) for each in about.up or ()],
        "bottom_logits": [text(each.text) for each in about.down or ()],
        "act_min": 0.0,
        "act_max": about.most,
        "quantile_values": list(about.quantiles),
        "histogram": [float(count) for count in about.histogram] if about.count else [],
        "activation_frequency": about.rate,
    }


def example(each: Example) -> dict[str, Any]:
    """Return a context with its codes."""
    tokens = each.context.tokens
    return {
        "tokens_acts_list": [one.code for one in tokens],
        "train_token_ind": [one.at for one in tokens].index(each.context.at),
        "is_repeated_datapoint": False,
        "tokens": [text(one.text) for one in tokens],
    }
