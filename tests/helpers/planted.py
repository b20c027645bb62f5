"""A small model whose head reads one direction for one token, and a dictionary whose latent writes it."""

from pathlib import Path

import numpy as np
import torch

from sae_dist.export.exported import ExportedSae
from sae_dist.export.statistics import CodeStatistics, CodeSums
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel, as_model
from sae_dist.interpret.place import Place
from sae_dist.interpret.study.prompts import Prompt

WIDTH, LATENTS, VOCABULARY = 32, 24, 40
PLANTED, TOKEN, OTHER = 3, 7, 5
"""The latent that writes the direction, the token that it is read for, and a latent without a meaning."""


def planted(dtype=torch.float32) -> tuple[Dictionary, LanguageModel, CodeStatistics]:
    """The dictionary at the last layer, the model, and the latents' statistics on random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    for layer in model.model.layers:  # its own norms compute in float32
        layer.input_layernorm, layer.post_attention_layernorm = _norm(dtype), _norm(dtype)
    model.model.norm = _norm(dtype)
    rows = torch.nn.functional.normalize(torch.randn(LATENTS, WIDTH, dtype=dtype), dim=1)
    direction = rows[PLANTED]
    apart = rows - (rows @ direction)[:, None] * direction
    rows = torch.nn.functional.normalize(apart, dim=1)
    rows[PLANTED] = direction
    model.model.embed_tokens.weight.normal_()
    model.lm_head.weight.normal_(std=0.3)
    model.lm_head.weight[TOKEN] = 1.5 * direction
    sae = ExportedSae(
        kind="relu",
        W_enc_FD=rows.clone(),
        W_dec_FE=rows,
        b_dec_E=torch.zeros(WIDTH, dtype=dtype),
        b_enc_F=torch.full((LATENTS,), -0.2, dtype=dtype),
        metadata={"hook_name": "layers.1:out"},
    )
    dictionary = Dictionary(sae, Place(Path("planted"), None, dict(sae.metadata)))
    lm = as_model(model)
    sums = CodeSums(LATENTS, torch.device("cpu"))
    with torch.no_grad(), dictionary.attach(lm) as attached:
        lm(input_ids=torch.randint(3, VOCABULARY, (16, 16)))
    assert attached.codes is not None
    sums.add(attached.codes.plain())
    statistics = sums.statistics()
    dictionary.place.measured = statistics
    return dictionary, lm, statistics


def _norm(dtype: torch.dtype) -> torch.nn.Module:
    return torch.nn.RMSNorm(WIDTH, eps=1e-6, dtype=dtype).requires_grad_(False)


def prompts(number: int, target: tuple[int, ...] = (TOKEN,), against: tuple[int, ...] = ()) -> list[Prompt]:
    """Random prompts of several lengths."""
    draw = np.random.default_rng(1)
    drawn = [draw.integers(3, VOCABULARY, draw.integers(4, 9)).tolist() for _ in range(number)]
    return [Prompt(str(ids), tuple(ids), target, against) for ids in drawn]
