"""A random llama of width 64, and short texts, for runs whose language model needs to be none in particular.

Its four layers have the names of the embedded model's, and its tokenizer is that one's; its chunks cost a
quarter. Saved without transformers, which takes seconds to import. Its head expects the token before once
more, and every second word of the texts is that, so that the cross-entropy is lower with the model's
activations than without. Of Python's own text each lane tokenizes 16 KiB at a time, of these some hundred
bytes.
"""

import json
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors.torch import save_file

import sae_dist.llm

EMBEDDED = Path(sae_dist.llm.__file__).parent / "embedded"
LAYERS, WIDTH, HIDDEN = 4, 64, 96
DOCUMENTS, WORDS = 2000, 60
SMALL_LLM = ["llm.name=llm", "tokens.path=texts.jsonl"]
"""The two, in a folder that `save_small_llm` was given."""
SMALL = [*SMALL_LLM, "batch=192", "shuffle.chunk_rows=64"]
"""Steps of a few hundredths of a second; behind commands.TINY."""


def save_small_llm(folder: Path) -> Path:
    """Save both in `folder`; returns it."""
    to = folder / "llm"
    to.mkdir(exist_ok=True)
    config = json.loads((EMBEDDED / "config.json").read_text())
    config |= {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS}
    config |= {"head_dim": WIDTH // config["num_attention_heads"], "dtype": "float32"}
    (to / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / name, to)
    save_file(_weights(config["vocab_size"]), to / "model.safetensors", metadata={"format": "pt"})
    random, words = Random(0), _words(to / "tokenizer.json")
    texts = ("".join(2 * word for word in random.choices(words, k=WORDS)) for _ in range(DOCUMENTS))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def _words(tokenizer: Path) -> list[str]:
    """Words of one token, each with the space before it."""
    vocabulary = json.loads(tokenizer.read_text(encoding="utf-8"))["model"]["vocab"]
    words = [token[1:] for token in vocabulary if token[0] == "Ġ"]
    return [f" {word}" for word in words if word.isalpha() and word.isascii()]


def _weights(vocabulary: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    weights = {
        "model.embed_tokens.weight": torch.randn(vocabulary, WIDTH, generator=random),
        "model.norm.weight": torch.full((WIDTH,), 0.2),
    }
    shapes = dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), (WIDTH, WIDTH))
    shapes |= {"self_attn.o_proj": (WIDTH, WIDTH), "mlp.down_proj": (WIDTH, HIDDEN)}
    shapes |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (HIDDEN, WIDTH))
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"{prefix}.{name}.weight"] = torch.ones(WIDTH)
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=random) / shape[1] ** 0.5
            weights[f"{prefix}.{name}.weight"] = weight
    return weights
