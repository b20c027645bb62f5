"""The way from a checkpoint's tensors, which act on scaled activations, to a dictionary for raw ones.

Training ran on s_in * x, and on s_out * y for a transcoder's target y (an autoencoder: y = x, s_out = s_in).
Codes are divided by s_out, so that decoder rows stay as they are:

    y_hat / s_out = (code / s_out) W_dec + b_dec / s_out + (s_in / s_out) W_skip x

With `activations.scaling=centred` it ran on s_in (x - m_in) and s_out (y - m_out): m_out is added to b_dec,
which an autoencoder's encoder subtracts anyway; a transcoder's m_in goes into its biases, through W_enc and
W_skip.

The codes of every form are positively homogeneous: ReLU, TopK, a threshold and a gate commute with 1 / s_out
if every bias and threshold is divided by s_out too. This leaves W_enc (s_in x) / s_out: so W_enc is scaled by
s_in / s_out. That is 1 for an autoencoder: W_enc (s_in x - b_dec) / s_in = W_enc (x - b_dec / s_in).
Logarithms of ratios do not change.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from sae_dist.config.kinds import SELECTED
from sae_dist.config.run import RunConfig
from sae_dist.export.exported import FORMS, ExportedSae, Vectors


class TrainedKind(Protocol):
    """The part of a kind's class that exports need; see `dictionary.base.Dictionary`."""

    sharded: tuple[str, ...]
    scalars: tuple[str, ...]
    form: str

    def to_form(self, tensors: Vectors) -> Vectors: ...

    def from_form(self, vectors: Vectors, norm_F: Tensor, scale: float) -> Mapping[str, Tensor]: ...


def tensor_names(cfg: RunConfig, kind: TrainedKind) -> list[str]:
    """Return the names of the checkpoint's tensors that `to_exported` reads."""
    names = [*kind.sharded, "b_dec", *kind.scalars]
    names += ["W_skip"] if cfg.sae.skip else []
    return [*names, "shift"] if cfg.activations.scaling == "centred" else names


def to_exported(
    cfg: RunConfig, kind: TrainedKind, tensors: Mapping[str, Tensor], scales: Sequence[float]
) -> ExportedSae:
    """Return the finished dictionary in raw activation space, or the part of it whose latents are given.

    Args:
        kind: the class of `sae.kind`.
        tensors: `tensor_names(cfg, kind)`: W_enc [F, D], W_dec [F, E], vectors [F], b_dec [E], scalars [],
            W_skip [E, D], shift [D] or [D + E].
        scales: s_in, and for a transcoder s_out.
    """
    s_in, s_out = scales[0], scales[-1]
    ratio = s_in / s_out
    form = FORMS[kind.form]
    trained_as = cfg.sae.kind if cfg.sae.kind != kind.form else None
    own = {
        name: value if name in form.log_ratios else value / s_out
        for name, value in kind.to_form(tensors).items()
    }
    W_enc_FD = tensors["W_enc"]
    found = ExportedSae(
        kind=kind.form,
        W_enc_FD=W_enc_FD if ratio == 1 else W_enc_FD * ratio,
        W_dec_FE=tensors["W_dec"],
        b_dec_E=tensors["b_dec"] / s_out,
        k=cfg.sae.k if form.codes is None else None,
        W_skip_ED=tensors["W_skip"] * ratio if "W_skip" in tensors else None,
        transcoder=cfg.target_hook is not None,
        trained_as=trained_as,
        metadata={"training_k": cfg.sae.k} if trained_as in SELECTED else {},
        **own,
    )
    if "shift" in tensors:
        unshift(found, tensors["shift"])
    return found


def to_tensors(
    kind: TrainedKind, sae: ExportedSae, scales: Sequence[float], shift_C: Tensor, unit_rows: bool
) -> dict[str, Tensor]:
    """Return the tensors that training starts with at a finished dictionary: the reverse of `to_exported`.

    Args:
        kind: the class of the kind to train. `sae` has its form, or both select their codes.
        sae: the finished dictionary, or the part of it whose tensors are wanted.
        scales, shift_C: of the training; see `to_exported` and `unshift`.
        unit_rows: scale decoder rows to unit norm, and codes to match. This is exact unless codes are
            selected: then it changes their order.
    """
    s_in, s_out = scales[0], scales[-1]
    in_D, out_E = shift_C[: sae.width], shift_C[-len(sae.b_dec_E) :]
    norm_F = sae.W_dec_FE.norm(dim=1) if unit_rows else torch.ones_like(sae.W_dec_FE[:, 0])
    b_dec_E = sae.b_dec_E - out_E
    move_F = torch.zeros_like(norm_F)
    if sae.transcoder:
        move_F = sae.W_enc_FD @ in_D
    own = sae.vectors
    own |= {name: (own[name] + moved_F) * (norm_F * s_out) for name, moved_F in _moves(sae, move_F).items()}
    found = {
        "W_enc": sae.W_enc_FD * (norm_F * (s_out / s_in))[:, None],
        "W_dec": sae.W_dec_FE / norm_F[:, None],
        **kind.from_form(own, norm_F, s_out),
    }
    if sae.W_skip_ED is not None:
        found["W_skip"] = sae.W_skip_ED * (s_out / s_in)
        b_dec_E = b_dec_E + sae.W_skip_ED @ in_D
    return found | {"b_dec": b_dec_E * s_out}


def unshift(sae: ExportedSae, shift_C: Tensor) -> None:
    """Turn a dictionary for x - m_in and y - m_out into one for x and y, in place.

    Args:
        shift_C: m_in [D], and for a transcoder m_out [E] after it.
    """
    D, E = sae.W_enc_FD.shape[1], len(sae.b_dec_E)
    in_D, out_E = shift_C[:D], shift_C[-E:]
    sae.b_dec_E = sae.b_dec_E + out_E
    if not sae.transcoder:
        return
    for name, moved_F in _moves(sae, sae.W_enc_FD @ in_D).items():
        setattr(sae, name, getattr(sae, name) - moved_F)
    if sae.W_skip_ED is not None:
        sae.b_dec_E = sae.b_dec_E - sae.W_skip_ED @ in_D


def _moves(sae: ExportedSae, move_F: Tensor) -> dict[str, Tensor]:
    """Return how much each bias's term changes, [F], when z changes by `move_F`."""
    return {
        name: move_F if ratio is None else getattr(sae, ratio).exp() * move_F
        for name, ratio in sae.form.biases.items()
    }
