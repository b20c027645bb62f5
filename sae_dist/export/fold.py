"""From the tensors of a checkpoint, which act on scaled activations, to a dictionary for raw ones.

Training ran on s_in * x, and on s_out * y for a transcoder's target y (an autoencoder: y = x, s_out = s_in).
Codes are divided by s_out, so that decoder rows stay as they are:

    y_hat / s_out = (code / s_out) W_dec + b_dec / s_out + (s_in / s_out) W_skip x

With `activations.scaling=centred` it ran on s_in (x - m_in) and s_out (y - m_out): m_out joins b_dec, which
an autoencoder's encoder subtracts anyway; a transcoder's m_in goes into its biases, through W_enc and W_skip.

Every kind's code is positively homogeneous: ReLU, TopK, a threshold and a gate commute with 1 / s_out if
every bias and threshold is divided by it too. What is left is W_enc (s_in x) / s_out: W_enc is multiplied
by s_in / s_out, which is 1 for an autoencoder: W_enc (s_in x - b_dec) / s_in is W_enc (x - b_dec / s_in).
r_mag, the logarithm of a ratio, stays.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sae_dist.config.run import RunConfig
from sae_dist.export.exported import ExportedSae

USED_AS = {
    "topk": "topk",
    "relu": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "batchtopk": "jumprelu",
    "matryoshka": "jumprelu",
}
"""Kind that is trained -> kind of the finished dictionary."""
PER_LATENT = ("W_enc", "W_dec", "b_enc", "log_threshold", "b_gate", "b_mag", "r_mag")
"""Tensors of a checkpoint with a row, or a number, for each latent."""
OWN_TENSORS = {
    "topk": ["b_enc"],
    "relu": ["b_enc"],
    "jumprelu": ["b_enc", "log_threshold"],
    "gated": ["b_gate", "b_mag", "r_mag"],
    "batchtopk": ["b_enc", "threshold"],
    "matryoshka": ["b_enc", "threshold"],
}


def tensor_names(cfg: RunConfig) -> list[str]:
    """The tensors of a checkpoint that `to_exported` reads."""
    names = ["W_enc", "W_dec", "b_dec", *OWN_TENSORS[cfg.sae.kind]]
    names += ["W_skip"] if cfg.sae.skip else []
    return [*names, "shift"] if cfg.activations.scaling == "centred" else names


def to_exported(cfg: RunConfig, tensors: dict[str, Tensor], scales: Sequence[float]) -> ExportedSae:
    """The finished dictionary in raw activation space, or the part of it whose latents are given.

    Args:
        tensors: `tensor_names(cfg)`: W_enc [F, D], W_dec [F, E], b_dec [E], b_enc, b_gate, b_mag, r_mag,
            log_threshold [F], threshold [], W_skip [E, D], shift [D] or [D + E].
        scales: s_in, and for a transcoder s_out.
    """
    s_in, s_out = scales[0], scales[-1]
    ratio = s_in / s_out
    trained_as = cfg.sae.kind if cfg.sae.kind != USED_AS[cfg.sae.kind] else None

    def divided(name: str) -> Tensor | None:
        return tensors[name] / s_out if name in tensors else None

    W_enc_FD, W_dec_FE = tensors["W_enc"], tensors["W_dec"]
    log_threshold_F = tensors.get("log_threshold")
    threshold_F = None if log_threshold_F is None else log_threshold_F.exp() / s_out
    if "threshold" in tensors:
        threshold_F = (tensors["threshold"] / s_out).to(W_enc_FD.dtype).expand(len(W_enc_FD))
    found = ExportedSae(
        kind=USED_AS[cfg.sae.kind],
        W_enc_FD=W_enc_FD if ratio == 1 else W_enc_FD * ratio,
        W_dec_FE=W_dec_FE,
        b_dec_E=tensors["b_dec"] / s_out,
        b_enc_F=divided("b_enc"),
        k=cfg.sae.k if cfg.sae.kind == "topk" else None,
        threshold_F=threshold_F,
        b_gate_F=divided("b_gate"),
        b_mag_F=divided("b_mag"),
        r_mag_F=tensors.get("r_mag"),
        W_skip_ED=tensors["W_skip"] * ratio if "W_skip" in tensors else None,
        transcoder=cfg.target_hook is not None,
        trained_as=trained_as,
        metadata={} if trained_as is None else {"training_k": cfg.sae.k},
    )
    if "shift" in tensors:
        unshift(found, tensors["shift"])
    return found


def to_tensors(
    kind: str, sae: ExportedSae, scales: Sequence[float], shift_C: Tensor, unit_rows: bool
) -> dict[str, Tensor]:
    """The reverse: the tensors with which training would begin at a finished dictionary, or at a part of it.

    Args:
        kind: that is trained; `sae` is of a kind that it is used as, or both select their codes.
        scales, shift_C: of the training, see `to_exported` and `unshift`.
        unit_rows: bring decoder rows to unit norm, and codes to their length: exact but for selected codes,
            whose rank that changes.
    """
    s_in, s_out = scales[0], scales[-1]
    in_D, out_E = shift_C[: sae.width], shift_C[-len(sae.b_dec_E) :]
    norm_F = sae.W_dec_FE.norm(dim=1) if unit_rows else torch.ones_like(sae.W_dec_FE[:, 0])
    b_dec_E = sae.b_dec_E - out_E
    move_F = torch.zeros_like(norm_F)
    if sae.transcoder:
        move_F = sae.W_enc_FD @ in_D
    found = {
        "W_enc": sae.W_enc_FD * (norm_F * (s_out / s_in))[:, None],
        "W_dec": sae.W_dec_FE / norm_F[:, None],
    }
    if sae.b_enc_F is not None:
        found["b_enc"] = (sae.b_enc_F + move_F) * (norm_F * s_out)
    if sae.b_gate_F is not None and sae.b_mag_F is not None and sae.r_mag_F is not None:
        found["b_gate"] = (sae.b_gate_F + move_F) * (norm_F * s_out)
        found["b_mag"] = (sae.b_mag_F + sae.r_mag_F.exp() * move_F) * (norm_F * s_out)
        found["r_mag"] = sae.r_mag_F
    if sae.threshold_F is not None and kind == "jumprelu":
        found["log_threshold"] = (sae.threshold_F * norm_F * s_out).log()
    elif sae.threshold_F is not None and "threshold" in OWN_TENSORS[kind]:
        found["threshold"] = sae.threshold_F[0] * s_out
    if sae.W_skip_ED is not None:
        found["W_skip"] = sae.W_skip_ED * (s_out / s_in)
        b_dec_E = b_dec_E + sae.W_skip_ED @ in_D
    return found | {"b_dec": b_dec_E * s_out}


def unshift(sae: ExportedSae, shift_C: Tensor) -> None:
    """From a dictionary for x - m_in and y - m_out to one for x and y, in place.

    Args:
        shift_C: m_in [D], and for a transcoder m_out [E] after it.
    """
    D, E = sae.W_enc_FD.shape[1], len(sae.b_dec_E)
    in_D, out_E = shift_C[:D], shift_C[-E:]
    sae.b_dec_E = sae.b_dec_E + out_E
    if not sae.transcoder:
        return
    move_F = sae.W_enc_FD @ in_D
    if sae.b_enc_F is not None:
        sae.b_enc_F = sae.b_enc_F - move_F
    if sae.b_gate_F is not None and sae.b_mag_F is not None and sae.r_mag_F is not None:
        sae.b_gate_F = sae.b_gate_F - move_F
        sae.b_mag_F = sae.b_mag_F - sae.r_mag_F.exp() * move_F
    if sae.W_skip_ED is not None:
        sae.b_dec_E = sae.b_dec_E - sae.W_skip_ED @ in_D
