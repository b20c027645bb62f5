"""Every kind's loss as one dense formula, to be differentiated by autograd: what the sharded code must equal.

All latents on one rank, [rows, latents] tensors, nothing clever.
"""

import torch
from torch import Tensor

from sae_dist.config.sections import SaeConfig
from sae_dist.dictionary.latents import levels


def loss(cfg: SaeConfig, p: dict[str, Tensor], x: Tensor, y: Tensor, facts: dict) -> Tensor:
    """The loss of a batch.

    Args:
        p: parameters by name, whole; x, y: input and target (the same tensor: an autoencoder).
        facts: variance (of the loss's scale), dead (bool [F]), coefficient (of the penalty).
    """
    transcoder = x is not y
    z = (x if transcoder else x - p["b_dec"]) @ p["W_enc"].T
    skip = x @ p["W_skip"].T if "W_skip" in p else 0.0
    code, penalty, extra, second = CODES[cfg.kind](cfg, p, z)
    unit = len(x) * facts["variance"]

    def squares(codes: Tensor, decoder: Tensor, offset: Tensor) -> Tensor:
        return (y - codes @ decoder - offset).square().sum()

    offset = p["b_dec"] + skip
    if cfg.kind == "matryoshka":
        level = levels(cfg.num_latents, cfg.prefixes)
        each = [squares(code * (level <= n).to(code), p["W_dec"], offset) for n in range(len(cfg.prefixes))]
        total = sum(each) / len(each) / unit
    else:
        total = squares(code, p["W_dec"], offset) / unit
    if second is not None:
        total = total + squares(second, p["W_dec"].detach(), offset.detach()) / unit
    if cfg.target_l0 is not None:
        total = total + facts["coefficient"] * (penalty / len(x) / cfg.target_l0 - 1).square()
    elif cfg.sparsity is not None:
        total = total + facts["coefficient"] * penalty / unit
    total = total + extra / unit
    dead = facts["dead"]
    if cfg.aux_k and dead.any() and cfg.sparsity is None:
        e = (y - code @ p["W_dec"] - offset).detach()
        score = z + p["b_enc"]
        chosen = keep(score.masked_fill(~dead, -torch.inf), min(cfg.aux_k, int(dead.sum())))
        missed = e - (chosen * score).relu() @ p["W_dec"]
        share = min(1.0, int(dead.sum()) / cfg.aux_k)
        total = total + cfg.aux_coefficient * share * missed.square().sum() / e.square().sum()
    return total


def keep(scores: Tensor, k: int) -> Tensor:
    """1 at the k largest of each row, else 0."""
    return torch.zeros_like(scores).scatter(1, scores.topk(k, dim=1).indices, 1.0)


def topk(cfg: SaeConfig, p: dict[str, Tensor], z: Tensor):
    score = z + p["b_enc"]
    return (keep(score, cfg.k) * score).relu(), 0.0, 0.0, None


def batchtopk(cfg: SaeConfig, p: dict[str, Tensor], z: Tensor):
    code = (z + p["b_enc"]).relu()
    kept = keep(code.reshape(1, -1), cfg.k * len(z)).view_as(code)
    return kept * code, 0.0, 0.0, None


def relu(cfg: SaeConfig, p: dict[str, Tensor], z: Tensor):
    code = (z + p["b_enc"]).relu()
    weight = p["W_dec"].norm(dim=1) if cfg.l1_weighting == "decoder_norm" else 1.0
    return code, (code * weight).sum(), 0.0, None


def jumprelu(cfg: SaeConfig, p: dict[str, Tensor], z: Tensor):
    """Pseudo-gradients written as differentiable terms of value zero."""
    score, threshold = z + p["b_enc"], p["log_threshold"].exp()
    active = (score > threshold).to(score)
    near = ((score - threshold).abs() < cfg.bandwidth / 2).to(score)
    move = near / cfg.bandwidth * (threshold.detach() - threshold)
    code = score * active + threshold.detach() * move
    count = active + move
    penalty = count.sum() if cfg.penalty == "l0" else (4 * code).tanh().sum()
    return code, penalty, cfg.preact * (threshold - score).relu().sum(), None


def gated(cfg: SaeConfig, p: dict[str, Tensor], z: Tensor):
    gate = z + p["b_gate"]
    code = (z * p["r_mag"].exp() + p["b_mag"]).relu() * (gate > 0)
    return code, gate.relu().sum(), 0.0, gate.relu()


CODES = {
    "topk": topk,
    "batchtopk": batchtopk,
    "matryoshka": batchtopk,
    "relu": relu,
    "jumprelu": jumprelu,
    "gated": gated,
}
