"""Small random dictionaries of every kind, and what each computes, written down densely."""

from pathlib import Path

import torch
from torch import Tensor

from sae_dist.export.exported import ExportedSae, SparseCodes

F, D, OUT, K = 40, 12, 9, 5
KINDS = ("topk", "relu", "jumprelu", "gated")
FORMS = ("autoencoder", "transcoder", "skip")


def random_sae(
    kind: str, form: str = "autoencoder", dtype=torch.float32, F=F, D=D, out=OUT, k=K
) -> ExportedSae:
    """Unit decoder rows; biases and thresholds at which a part of the latents fires."""
    draw = torch.Generator().manual_seed(KINDS.index(kind))

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    out = D if form == "autoencoder" else out
    W_dec = rand(F, out)
    own = {
        "topk": {"b_enc_F": rand(F) - 1.0, "k": k},
        "relu": {"b_enc_F": rand(F) - 1.0},
        "jumprelu": {"b_enc_F": rand(F), "threshold_F": 0.5 + rand(F).abs()},
        "gated": {"b_gate_F": rand(F) - 1.0, "b_mag_F": rand(F), "r_mag_F": 0.3 * rand(F)},
    }
    return ExportedSae(
        kind=kind,
        W_enc_FD=rand(F, D) / D**0.5 * 2,
        W_dec_FE=W_dec / W_dec.norm(dim=1, keepdim=True),
        b_dec_E=rand(out),
        W_skip_ED=rand(out, D) / D**0.5 if form == "skip" else None,
        transcoder=form != "autoencoder",
        metadata={"hook_name": "h"},
        **own[kind],
    )


def dense_codes(sae: ExportedSae, x: Tensor) -> Tensor:
    """[B, F], by the formula of the kind."""
    z = (x if sae.transcoder else x - sae.b_dec_E) @ sae.W_enc_FD.T
    if sae.kind == "gated":
        return torch.where(z + sae.b_gate_F > 0, (z * sae.r_mag_F.exp() + sae.b_mag_F).clamp(min=0), 0)
    pre = z + sae.b_enc_F
    if sae.kind == "topk":
        top = pre.topk(sae.k)
        return torch.zeros_like(pre).scatter_(1, top.indices, top.values.clamp(min=0))
    if sae.kind == "jumprelu":
        return torch.where(pre > sae.threshold_F, pre.clamp(min=0), 0)
    return pre.clamp(min=0)


def dense_output(sae: ExportedSae, x: Tensor) -> Tensor:
    """[B, E], by the formula."""
    y = dense_codes(sae, x) @ sae.W_dec_FE + sae.b_dec_E
    return y if sae.W_skip_ED is None else y + x @ sae.W_skip_ED.T


def to_dense(codes: SparseCodes, num_latents: int) -> Tensor:
    """Sparse codes as [B, F]."""
    rows = len(codes.offsets_B)
    ends = [*codes.offsets_B.tolist()[1:], len(codes.latent_P)]
    dense = codes.value_P.new_zeros(rows, num_latents)
    for row, (first, end) in enumerate(zip(codes.offsets_B.tolist(), ends, strict=True)):
        dense[row].index_add_(0, codes.latent_P[first:end], codes.value_P[first:end])
    return dense


def unlisted(folder: Path) -> Path:
    """Remove the lists of checksums of an export, as of what another program wrote; return the folder."""
    for each in folder.rglob("*.sha256"):
        each.unlink()
    return folder
