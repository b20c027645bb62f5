"""Small random models of several architectures, saved with a tokenizer as transformers saves them."""

import shutil
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

import sae_dist.llm
from sae_dist.core.types import TokenChunk
from sae_dist.llm.cut import layers_of

EMBEDDED = Path(sae_dist.llm.__file__).parent / "embedded"
LAYERS, WIDTH, CONTEXT = 4, 32, 64
COMMON = dict(
    hidden_size=WIDTH,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=CONTEXT,
    pad_token_id=1,
)
OWN = {
    "llama": {},
    "gpt2": dict(n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=CONTEXT),
    "gpt_neox": {},
    "bert": {},
    "roberta": {},
    "mistral": dict(sliding_window=6, num_key_value_heads=2, head_dim=8),
    "gemma3_text": dict(sliding_window=6, num_key_value_heads=2, head_dim=8),
    "gemma2": dict(sliding_window=6, num_key_value_heads=2, head_dim=8),
    "modernbert": dict(local_attention=8),
    "opt": dict(ffn_dim=48, word_embed_proj_dim=WIDTH),
    "bloom": dict(n_layer=LAYERS, n_head=4),
}
ENCODERS = ("bert", "roberta", "modernbert")


def save_tiny(kind: str, folder: Path) -> str:
    """Save a random model of `kind` in `folder`; returns the folder's name.

    Weights are larger than at initialisation, so that attention is far from uniform and a leak shows.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

    tokenizer = Tokenizer.from_file(str(EMBEDDED / "tokenizer.json"))
    config = AutoConfig.for_model(kind, vocab_size=tokenizer.get_vocab_size(), **{**COMMON, **OWN[kind]})
    torch.manual_seed(0)
    auto = AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM
    model = auto.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    model.save_pretrained(folder)
    shutil.copy(EMBEDDED / "tokenizer_config.json", folder)
    if kind in ENCODERS:
        first, last = tokenizer.id_to_token(0), tokenizer.id_to_token(5)
        tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A {last}", special_tokens=[(first, 0), (last, 5)]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    return str(folder)


def num_layers(llm) -> int:
    """Return how many layers a loaded model has in memory."""
    return len(llm.base.get_submodule(layers_of(llm.facts.hooks)[0]))


def packed_chunk(lengths=((9, 20, 6), (30,)), context=40, prefix=1) -> TokenChunk:
    """Random packed sequences; the first token of each segment is special."""
    random = torch.Generator().manual_seed(3)
    shape = (len(lengths), context)
    ids = torch.randint(6, 2000, shape, generator=random)
    segment, position = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
    keep = torch.zeros(shape, dtype=torch.bool)
    for n, row in enumerate(lengths):
        at = 0
        for number, length in enumerate(row, start=1):
            segment[n, at : at + length] = number
            position[n, at : at + length] = torch.arange(length)
            keep[n, at + prefix : at + length] = True
            at += length
    return TokenChunk(7, 1, ids, segment, position, keep, segment - 1, {"chunk": 0})


class TinyLlms:
    """Kind -> folder of its tiny model, saved when it is first asked for."""

    def __init__(self, folders):
        self.folders = folders
        self.saved: dict[str, str] = {}

    def __call__(self, kind: str) -> str:
        if kind not in self.saved:
            self.saved[kind] = save_tiny(kind, self.folders.mktemp(kind))
        return self.saved[kind]
