"""A small GPT-2 with weights set by hand, whose circuit is known, and transcoders that are its MLPs.

"Eiffel beside the Colosseum in" is followed by Paris: a latent of layer 0 fires on Eiffel and writes `found`,
attention of layer 1 moves that to the last token, where a latent of layer 1 reads it and writes what the head
reads for Paris. The Colosseum has such a path to Rome, which also speaks against Paris. Latents that write
what nobody reads fire beside these. `python -m tests.helpers.planted_circuit` prints what a graph finds.

All tokens have one large component in common, so that norms multiply by nearly 1 whatever else there is.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.export.exported import ExportedSae
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel, as_model
from sae_dist.interpret.place import Place

WORDS = ("<unk>", "Eiffel", "Colosseum", "beside", "the", "in", "Paris", "Rome", ".", "The", "London", "of")
PROMPT = "Eiffel beside the Colosseum in"
EIFFEL, COLOSSEUM, LAST = 0, 3, 4
"""Positions in the prompt."""
WIDTH, LATENTS, HEADS = 32, 24, 2
COMMON, MARK = 200.0, 2.0
"""The component that all tokens have, and the strength of marks of single tokens."""
DIRECTIONS = (
    "common",
    "eiffel",
    "colosseum",
    "place",
    "asks",
    "found",
    "found too",
    "moved",
    "moved too",
    "paris",
    "rome",
    "unread",
    "unread too",
)
MARKS = {
    "Eiffel": ("eiffel", "place"),
    "Colosseum": ("colosseum", "place"),
    "in": ("asks",),
}
MOVES = {"found": ("moved", 1.5), "found too": ("moved too", 1.5)}
"""What attention of layer 1 takes from places to where a token asks, and how much larger."""


@dataclass(frozen=True)
class Planted:
    """A latent: it reads a direction, less `above`, and writes others."""

    layer: int
    latent: int
    reads: str
    above: float
    writes: dict[str, float]


PLANTED = (
    Planted(0, 0, "eiffel", 0.5, {"found": 1.5}),
    Planted(0, 1, "colosseum", 0.5, {"found too": 1.4}),
    Planted(0, 2, "asks", 0.8, {"paris": 0.5}),
    Planted(0, 3, "asks", 0.6, {"rome": 0.4, "paris": -0.35}),
    Planted(0, 4, "eiffel", 0.9, {"found": 0.8}),
    Planted(0, 5, "colosseum", 1.0, {"found too": 0.6}),
    Planted(1, 0, "moved", 0.5, {"paris": 2.0}),
    Planted(1, 1, "moved too", 0.3, {"rome": 1.5, "paris": -0.6}),
    Planted(1, 2, "moved", 1.0, {"paris": 0.7}),
    Planted(1, 3, "asks", 1.2, {"paris": 0.4}),
    *(
        Planted(layer, 10 + n, reads, above, {"unread": size, "unread too": size / 2})
        for layer in (0, 1)
        for n, (reads, above, size) in enumerate(
            (
                ("eiffel", 0.5, 1.5),
                ("eiffel", 1.0, 0.8),
                ("colosseum", 0.5, 1.4),
                ("colosseum", 1.0, 0.6),
                ("asks", 0.6, 0.5),
                ("asks", 0.8, 0.6),
                ("asks", 0.2, 1.6),
                ("asks", 1.2, 0.4),
            )
        )
    ),
)
"""The latents of the circuit; from 10 on those whose writing nobody reads. Others never fire."""


HEAD = {"Paris": "paris", "Rome": "rome"}
PARIS = "l_6"
HOPS = {
    ("f_0_0_0", "f_1_4_0"): 1.5 * 1.5,
    ("f_0_0_4", "f_1_4_0"): 1.1 * 0.8,
    ("f_0_3_1", "f_1_4_1"): 1.5 * 1.4,
    ("f_0_0_0", "f_1_4_2"): 1.5 * 1.5,
    ("f_0_0_4", "f_1_4_2"): 1.1 * 0.8,
    ("f_0_3_5", "f_1_4_1"): 1.0 * 0.6,
}
"""The pairs of latents on the paths to Paris: the first one's code times what it writes."""
LOOKED_AT = 0.5
"""Attention's share for each of the two places."""


def known_paths() -> dict[tuple[str, str, str], float]:
    """What each path carries to the logit of Paris less the mean logit, where norms multiply by 1."""
    found = {}
    for (first, second), written in HOPS.items():
        layer, _, latent = map(int, second.split("_")[1:])
        latent_of = next(each for each in PLANTED if (each.layer, each.latent) == (layer, latent))
        moved = written * LOOKED_AT * next(by for to, by in MOVES.values() if to == latent_of.reads)
        found[first, second, PARIS] = moved * said(latent_of.writes)
    return found


def said(writes: dict[str, float]) -> float:
    """What writing does to the logit of Paris less the mean of all logits."""
    return writes.get("paris", 0.0) - sum(writes.get(read, 0.0) for read in HEAD.values()) / len(WORDS)


def direction(name: str) -> Tensor:
    """A unit vector whose components sum to 0: norms take no mean away."""
    found, place = torch.zeros(WIDTH), 2 * DIRECTIONS.index(name)
    found[place], found[place + 1] = 0.5**0.5, -(0.5**0.5)
    return found


def circuit_model(dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The model, as transformers has it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(WORDS),
        n_positions=32,
        n_embd=WIDTH,
        n_layer=2,
        n_head=HEADS,
        n_inner=LATENTS,
        activation_function="relu",
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(config).eval().requires_grad_(False)
    for each in model.parameters():
        each.zero_()
    for module in model.modules():
        if type(module).__name__ == "LayerNorm":
            module.weight.fill_(COMMON / WIDTH**0.5)
    base = model.transformer
    base.wte.weight[:] = COMMON * direction("common")
    for word, marks in MARKS.items():
        for mark in marks:
            base.wte.weight[WORDS.index(word)] += MARK * direction(mark)
    for word, read in HEAD.items():
        model.lm_head.weight[WORDS.index(word)] = direction(read)
    for layer, block in enumerate(base.h):
        _fill(block.mlp, layer)
    _attend(base.h[1].attn)
    return model.to(dtype)


def _fill(mlp: torch.nn.Module, layer: int) -> None:
    """Write the latents of a layer into its MLP, whose weights have inputs in rows."""
    mlp.c_fc.bias.fill_(-5.0)
    for each in PLANTED:
        if each.layer != layer:
            continue
        mlp.c_fc.weight[:, each.latent] = direction(each.reads)
        mlp.c_fc.bias[each.latent] = -each.above
        for name, size in each.writes.items():
            mlp.c_proj.weight[each.latent] += size * direction(name)


def _attend(attention: torch.nn.Module) -> None:
    """Let tokens that ask look at places, by the first head, and take what is there."""
    sharp = 10**0.5  # a score of 10 with both marks, divided by the root of the head's width
    attention.c_attn.weight[:, 0] = sharp * direction("asks")
    attention.c_attn.weight[:, WIDTH] = sharp * direction("place")
    for n, (name, (to, size)) in enumerate(MOVES.items(), 1):
        attention.c_attn.weight[:, 2 * WIDTH + n] = direction(name)
        attention.c_proj.weight[n] = size * direction(to)


def tokenizer():
    """Words between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token=WORDS[0])


def transcoders(model: torch.nn.Module, without: tuple[tuple[int, int], ...] = ()) -> list[Dictionary]:
    """The model's own MLPs as transcoders, so that there are no errors.

    Args:
        without: latents, by layer and number, that the transcoders lack.
    """
    found = []
    for layer, block in enumerate(model.transformer.h):
        W_dec_FE = block.mlp.c_proj.weight.clone()
        W_dec_FE[[n for at, n in without if at == layer]] = 0
        hooks = {"hook_name": f"h.{layer}.mlp:in", "hook_name_out": f"h.{layer}.mlp:out"}
        sae = ExportedSae(
            kind="relu",
            W_enc_FD=block.mlp.c_fc.weight.T.clone(),
            W_dec_FE=W_dec_FE,
            b_dec_E=block.mlp.c_proj.bias.clone(),
            b_enc_F=block.mlp.c_fc.bias.clone(),
            transcoder=True,
            metadata=hooks,
        )
        found.append(Dictionary(sae, Place(Path(f"planted/{layer}"), None, dict(sae.metadata))))
    return found


def planted_circuit(
    dtype: torch.dtype = torch.float32, without: tuple[tuple[int, int], ...] = ()
) -> tuple[list[Dictionary], LanguageModel]:
    """The transcoders and the model."""
    model = circuit_model(dtype)
    return transcoders(model, without), as_model(model, tokenizer())


def saved(folder: Path) -> Path:
    """Save the model and its transcoders; returns the folder of these, a set."""
    from sae_dist.export.saelens import export_saelens

    d, lm = planted_circuit()
    lm.model.save_pretrained(folder / "llm")
    lm.tokenizer.save_pretrained(folder / "llm")
    for layer, each in enumerate(d):
        each.sae.metadata["model_name"] = str(folder / "llm")
        export_saelens(folder / "set" / f"layer_{layer}", each.sae)
    return folder / "set"


def table() -> str:
    """The planted paths: by hand, by the graph, and what cutting each in the model does."""
    from sae_dist.core.text import columns
    from sae_dist.graph.check.chosen import firing
    from sae_dist.graph.check.paths import measured
    from sae_dist.graph.check.predicted import Predicted
    from sae_dist.graph.check.trials import Trials
    from sae_dist.graph.sites import sites_of
    from sae_dist.graph.trace import trace

    d, lm = planted_circuit()
    graph = trace(d, lm, PROMPT, targets=["Paris", "Rome"], node_threshold=1.0, edge_threshold=1.0)
    predicted, known = Predicted(graph), known_paths()
    logit = predicted.logits[0]
    found = {
        tuple(graph.nodes[n].id for n in each.nodes): each for each in predicted.paths(logit, len(known))
    }
    trials = Trials(
        sites_of(d, lm), lm, torch.tensor(graph.ids), [int(each.token or 0) for each in graph.logits]
    )
    inside = sorted({n for each in found.values() for n in each.nodes[:-1]})
    keys = [(graph.nodes[n].layer, graph.nodes[n].position, graph.nodes[n].latent) for n in inside]
    fired = dict(zip(inside, firing(trials, keys), strict=True))
    cut = dict(zip(found, measured(trials, predicted, list(found.values()), fired), strict=True))
    rows = [("path", "by hand", "graph", "cut in the model")]
    for path, carried in known.items():
        told = f"{found[path].effect:+.3f}" if path in found else "missing"
        rows.append((" > ".join(path), f"{carried:+.3f}", told, f"{cut.get(path, 0.0):+.3f}"))
    return "\n".join(columns(rows))


if __name__ == "__main__":
    print(table())
