"""The finished dictionary in raw activation space, as exports hold it and evaluation reads it.

Letters: as core.types.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

Encode = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""The type of a backend's `encode_topk`: (x_BD, W_FD, b_F, k) -> values and indices [B, K]."""

Vectors = Mapping[str, Tensor]
"""Tensors [F], one number per latent, by the name of their field in `ExportedSae`."""


@dataclass(frozen=True)
class Form:
    """A way to compute codes from z = W_enc (x - b_dec), or z = W_enc x in a transcoder.

    When activations and all vectors but `log_ratios` are multiplied by a positive factor, so are the codes.

    Attributes:
        biases: vectors that are added to z, each with the log ratio whose exp multiplies z first (or None).
        thresholds: vectors that scores are compared with.
        log_ratios: vectors that are logarithms of factors.
        codes: function of z [B, f] and the vectors of f latents to codes [B, f]; None: the k best latents,
            found by a kernel.
    """

    biases: Mapping[str, str | None]
    thresholds: tuple[str, ...] = ()
    log_ratios: tuple[str, ...] = ()
    codes: Callable[[Tensor, Vectors], Tensor] | None = None

    @property
    def vectors(self) -> tuple[str, ...]:
        """The names of the form's vectors, biases first."""
        return (*self.biases, *self.thresholds, *self.log_ratios)


def _relu(z_Bf: Tensor, own: Vectors) -> Tensor:
    return (z_Bf + own["b_enc_F"]).relu()


def _jumprelu(z_Bf: Tensor, own: Vectors) -> Tensor:
    score_Bf = z_Bf + own["b_enc_F"]
    return score_Bf.relu() * (score_Bf > own["threshold_F"])


def _gated(z_Bf: Tensor, own: Vectors) -> Tensor:
    open_Bf = z_Bf + own["b_gate_F"] > 0
    return (z_Bf * own["r_mag_F"].exp() + own["b_mag_F"]).relu() * open_Bf


FORMS = {
    "topk": Form({"b_enc_F": None}),
    "relu": Form({"b_enc_F": None}, codes=_relu),
    "jumprelu": Form({"b_enc_F": None}, thresholds=("threshold_F",), codes=_jumprelu),
    "gated": Form({"b_gate_F": None, "b_mag_F": "r_mag_F"}, log_ratios=("r_mag_F",), codes=_gated),
}
"""The forms by the name in `ExportedSae.kind`. Kinds that train differently may share one."""
OF_LATENTS = (
    "W_enc_FD",
    "W_dec_FE",
    *dict.fromkeys(name for form in FORMS.values() for name in form.vectors),
)
"""Fields of `ExportedSae` with a row, or a number, for each latent."""
LATENT_TILE = 4096
WRITTEN_BYTES = 16 << 20
"""The size of W_enc in a tile that is written at once."""


@dataclass
class SparseCodes:
    """The codes above zero, sorted by row: code p belongs to latent `latent_P[p]`, row b's begin at
    `offsets_B[b]`.
    """

    latent_P: Tensor
    value_P: Tensor
    offsets_B: Tensor


@dataclass(kw_only=True)
class ExportedSae:
    """A dictionary as it is used. With z = W_enc (x - b_dec), or z = W_enc x in a transcoder:

        topk      code = relu(topk(z + b_enc))
        relu      code = relu(z + b_enc)
        jumprelu  code = relu(z + b_enc) where z + b_enc > threshold, else 0
                  (Rajamanoharan et al. 2024, arXiv 2407.14435)
        gated     code = relu(z * exp(r_mag) + b_mag) where z + b_gate > 0, else 0
                  (Rajamanoharan et al. 2024, arXiv 2404.16014)
        y_hat     = code W_dec + b_dec, plus W_skip x in a transcoder with skip

    Attributes:
        kind: the form, a key of `FORMS`.
        trained_as: the kind that was trained, if its name is another: batchtopk and matryoshka are used as
            jumprelu with one threshold for all latents.
        metadata: JSON-able; where the dictionary comes from. batchtopk and matryoshka add `training_k`.
            matryoshka adds `matryoshka_prefixes`, the sizes of its prefixes, which are the first latents.
    """

    kind: str
    W_enc_FD: Tensor
    W_dec_FE: Tensor
    b_dec_E: Tensor
    b_enc_F: Tensor | None = None
    k: int | None = None
    threshold_F: Tensor | None = None
    b_gate_F: Tensor | None = None
    b_mag_F: Tensor | None = None
    r_mag_F: Tensor | None = None
    W_skip_ED: Tensor | None = None
    transcoder: bool = False
    trained_as: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = self.form.vectors if self.form.codes else (*self.form.vectors, "k")
        missing = [name for name in needed if getattr(self, name) is None]
        assert not missing, f"{self.kind} needs {', '.join(missing)}"
        assert self.transcoder or self.W_skip_ED is None, "an autoencoder has no skip"

    @property
    def form(self) -> Form:
        """The form of this dictionary, by its `kind`."""
        return FORMS[self.kind]

    @property
    def vectors(self) -> dict[str, Tensor]:
        """The vectors [F] of this dictionary's form, by field."""
        return {name: getattr(self, name) for name in self.form.vectors}

    @property
    def num_latents(self) -> int:
        """The number F of latents."""
        return self.W_enc_FD.shape[0]

    @property
    def width(self) -> int:
        """The width D of the activations that are encoded."""
        return self.W_enc_FD.shape[1]

    @property
    def head(self) -> "ExportedSae":
        """The dictionary itself; see `Latents`."""
        return self

    def tile(self, latents: slice | Tensor) -> "ExportedSae":
        """Return the same dictionary with some of its latents only."""
        parts: dict[str, Any] = {
            name: value[latents] for name in OF_LATENTS if (value := getattr(self, name)) is not None
        }
        return replace(self, **parts)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> "ExportedSae":
        """Return the same dictionary on another device, and in another dtype if one is given."""
        tensors: dict[str, Any] = {
            each.name: value.to(device, dtype)
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), Tensor)
        }
        return replace(self, **tensors)

    def encode(self, x_BD: Tensor, encode: Encode) -> SparseCodes:
        """Return the codes above zero.

        No [B, F] tensor is made: TopK has its kernel, the other forms are computed by tiles of latents.
        """
        x_BD = x_BD if self.transcoder else x_BD - self.b_dec_E
        if self.form.codes is None:
            assert self.b_enc_F is not None and self.k is not None
            val_BK, idx_BK = encode(x_BD, self.W_enc_FD, self.b_enc_F, self.k)
            row_P, slot_P = (val_BK > 0).nonzero(as_tuple=True)
            latent_P, value_P = idx_BK[row_P, slot_P], val_BK[row_P, slot_P]
        else:
            tiles = []
            for first in range(0, self.num_latents, LATENT_TILE):
                tile = slice(first, first + LATENT_TILE)
                own = {name: value[tile] for name, value in self.vectors.items()}
                code_Bf = self.form.codes(x_BD @ self.W_enc_FD[tile].T, own)
                row_P, place_P = (code_Bf > 0).nonzero(as_tuple=True)
                tiles.append((row_P, place_P + first, code_Bf[row_P, place_P]))
            row_P, latent_P, value_P = (torch.cat(parts) for parts in zip(*tiles, strict=True))
            order_P = row_P.argsort(stable=True)
            row_P, latent_P, value_P = row_P[order_P], latent_P[order_P], value_P[order_P]
        counts_B = torch.bincount(row_P, minlength=len(x_BD))
        return SparseCodes(latent_P, value_P, counts_B.cumsum(0) - counts_B)

    def decode(self, codes: SparseCodes, x_BD: Tensor) -> Tensor:
        """Return the reconstruction [B, E] from codes, and from the input in a transcoder with skip."""
        y_BE = self.b_dec_E + embedding_bag(
            codes.latent_P,
            self.W_dec_FE,
            codes.offsets_B,
            mode="sum",
            per_sample_weights=codes.value_P,
        )
        return y_BE if self.W_skip_ED is None else y_BE + x_BD @ self.W_skip_ED.T


class Latents(Protocol):
    """A dictionary that is read a few latents at a time; an `ExportedSae` is one that is in memory.

    `head` is the dictionary with its shapes and everything that is not of single latents. The fields
    `OF_LATENTS` of it may be on the meta device, where they take no memory.
    """

    @property
    def head(self) -> ExportedSae:
        """The dictionary without the tensors of its latents."""
        ...

    def tile(self, latents: slice) -> ExportedSae:
        """Return the dictionary with these latents only."""
        ...


def tiles(latents: Latents) -> Iterator[tuple[int, ExportedSae]]:
    """Yield all latents in order, a tile at a time, each with the number of its first latent."""
    head = latents.head
    step = max(1, WRITTEN_BYTES // (4 * head.width))
    for first in range(0, head.num_latents, step):
        yield first, latents.tile(slice(first, min(first + step, head.num_latents)))
