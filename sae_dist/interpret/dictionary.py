"""A dictionary in use: codes and reconstructions of activations, its weights, and where it belongs.

Letters: as core.types; I named latents.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.export.exported import ExportedSae
from sae_dist.interpret.codes import Codes
from sae_dist.interpret.encoding import Encoding
from sae_dist.interpret.place import Place
from sae_dist.interpret.some import SomeLatents

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas
    from sae_dist.export.statistics import CodeStatistics
    from sae_dist.interpret.attach import Attached
    from sae_dist.interpret.attribute.attribution import Attribution
    from sae_dist.interpret.explaining.explanation import Explanation
    from sae_dist.interpret.interventions import Intervention
    from sae_dist.interpret.rivals import Rivals
    from sae_dist.interpret.steer import Steered
    from sae_dist.interpret.watch import Watched


class Dictionary:
    """A trained dictionary, read-only; `sae_dist.load` makes one.

    Weights are mapped from the file, of which only what is used is read. Rows are raw, unscaled activations.
    """

    def __init__(self, sae: ExportedSae, place: Place):
        self.sae, self.place = sae, place
        self._encoding = Encoding(sae)

    @property
    def num_latents(self) -> int:
        """The number F of latents."""
        return self.sae.num_latents

    @property
    def width(self) -> int:
        """The width D of the activations that are encoded."""
        return self.sae.width

    @property
    def is_transcoder(self) -> bool:
        """The answer to: do the codes of one place reconstruct the activations at another?"""
        return self.sae.transcoder

    @property
    def kind(self) -> str:
        """The kind that was trained: topk, batchtopk, matryoshka, relu, jumprelu or gated."""
        return self.sae.trained_as or self.sae.kind

    @property
    def k(self) -> int | None:
        """The number of latents of a row; None: their number varies."""
        return self.sae.k

    @property
    def scaling(self) -> float:
        """The factor of activations before they are encoded: 1, since weights have it folded in."""
        return 1.0

    @property
    def hook(self) -> str | None:
        """The place in the model, a module's path or a name of TransformerLens; None: unknown."""
        return self.place.hook

    @property
    def target_hook(self) -> str | None:
        """The place that a transcoder reconstructs; None: it is no transcoder, or the place is unknown."""
        return self.place.target_hook

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.sae.W_dec_FE.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, in which codes are computed."""
        return self.sae.W_dec_FE.dtype

    @property
    def W_enc(self) -> Tensor:
        """The encoder [D, F], as SAELens has it: a latent is a column."""
        return self.sae.W_enc_FD.T

    @property
    def W_dec(self) -> Tensor:
        """The decoder [F, E]: a latent is a row."""
        return self.sae.W_dec_FE

    @property
    def b_enc(self) -> Tensor:
        """The biases [F] of the encoder.

        Raises:
            AttributeError: a gated dictionary has other biases in its place.
        """
        if self.sae.b_enc_F is None:
            raise AttributeError(f"a {self.kind} dictionary has no b_enc, but {', '.join(self.sae.vectors)}")
        return self.sae.b_enc_F

    @property
    def b_dec(self) -> Tensor:
        """The bias [E] of the decoder, which an autoencoder subtracts from its input, too."""
        return self.sae.b_dec_E

    @property
    def threshold(self) -> Tensor | None:
        """The thresholds [F] of JumpReLU; None: other kinds."""
        return self.sae.threshold_F

    @cached_property
    def cfg(self) -> Mapping[str, Any]:
        """The description of the dictionary under SAELens' names: architecture, d_in, d_sae, k, metadata."""
        from sae_dist.export.saelens import config_of

        return config_of(self.sae)

    @property
    def rate(self) -> Tensor | None:
        """The share of held-out tokens on which each latent fires [F], float32; None: never measured."""
        return self.place.rate(self.num_latents)

    def encode(self, x: Tensor) -> Codes:
        """Return the codes of rows [..., D], exactly those that training and evaluation compute.

        No tensor of [rows, F] is made. Codes have gradients where `x` requires them.

        Raises:
            ConfigError: the rows have another width, or are not on the dictionary's device.
        """
        rows = self._rows(x)
        return Codes.of(self._encoding.codes(rows), self.num_latents, tuple(x.shape[:-1]))

    def decode(self, codes: Codes, x: Tensor | None = None) -> Tensor:
        """Return the reconstruction [..., E] of codes.

        Args:
            x: the rows that were encoded, which a transcoder with a skip connection needs.

        Raises:
            ConfigError: `x` is needed and missing.
        """
        if self.sae.W_skip_ED is not None and x is None:
            raise ConfigError("decode(codes) of a transcoder with skip needs x, the rows that were encoded")
        rows = x.reshape(-1, self.width).to(self.dtype) if x is not None else codes.values.new_zeros(0)
        return self._encoding.decoded(codes, rows).view(*codes.leading, -1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """Return `decode(encode(x), x)`, [..., E]."""
        return self.decode(self.encode(x), x)

    __call__ = reconstruct

    @property
    def fits(self) -> bool:
        """The answer to: does the encoder fit into memory, so that encoding need not read the disk?"""
        return self._encoding.fits

    def some(self, latents: Sequence[int]) -> SomeLatents:
        """Read the rows of some latents only, which is cheap however many others there are.

        Raises:
            ConfigError: there is no such latent.
        """
        return SomeLatents.of(self.sae, self.checked(latents))

    def codes_of(self, some: SomeLatents, x_BD: Tensor) -> Tensor | None:
        """Return the codes of a few latents [B, I], those of `encode`; None: all are 0.

        Of TopK, all latents are encoded only for rows where that may find another code than 0.
        """
        return self._encoding.codes_of(some, x_BD)

    @property
    def rivals(self) -> "Rivals | None":
        """A sample of latents; see `Encoding.rivals`."""
        return self._encoding.rivals

    def checked(self, latents: Sequence[int]) -> list[int]:
        """Return latent numbers that exist.

        Raises:
            ConfigError: one does not.
        """
        for each in latents:
            if isinstance(each, bool) or int(each) != each or not 0 <= each < self.num_latents:
                raise ConfigError(
                    f"latent {each} does not exist; the latents are 0 to {self.num_latents - 1}"
                )
        return [int(each) for each in latents]

    def attach(
        self,
        lm: Any,
        *,
        error: bool = True,
        bias: bool = True,
        edit: "Mapping[int, Intervention] | Intervention | None" = None,
        positions: Any = "all",
        force: bool = False,
    ) -> "Attached":
        """Splice the dictionary into a model, for a `with` block; see `interpret.attach.Attached`.

        Raises:
            ConfigError: the model is not the dictionary's, or has no such hook.
        """
        from sae_dist.interpret.attach import attach

        return attach(self, lm, error=error, bias=bias, edit=edit, positions=positions, force=force)

    def steer(
        self,
        lm: Any,
        interventions: "Mapping[int, Intervention]",
        *,
        positions: Any = "all",
        again: bool = False,
        force: bool = False,
    ) -> "Steered":
        """Change the model's activations along named latents, in a `with` block; see `steer.Steered`.

        Raises:
            ConfigError: the model is not the dictionary's, or a latent or a dose is not valid.
        """
        from sae_dist.interpret.steer import steer

        return steer(self, lm, interventions, positions=positions, again=again, force=force)

    def explain(self, lm: Any, text: Any, **how: Any) -> "Explanation":
        """Tell which latents fired on a text, and how unusual that is; see `interpret.explain.explain`."""
        from sae_dist.interpret.explaining.explain import explain

        return explain(self, lm, text, **how)

    def attribute(self, lm: Any, text: Any, **how: Any) -> "Attribution":
        """Rank a prompt's codes by what they do to the next token; see `interpret.attribute.attribute`."""
        from sae_dist.interpret.attribute.attribute import attribute

        return attribute(self, lm, text, **how)

    def watch(self, lm: Any, latents: Sequence[int], **how: Any) -> "Watched":
        """Look at the codes of named latents in every forward, from their rows alone; see `watch.Watched`.

        Raises:
            ConfigError: the model is not the dictionary's, or a latent does not exist.
        """
        from sae_dist.interpret.watch import watch

        return watch(self, lm, latents, **how)

    def measure(self, lm: Any, **how: Any) -> "CodeStatistics":
        """Measure how often each latent fires, and how strongly; see `interpret.measure.measure`.

        Raises:
            ConfigError: the model is not the dictionary's, or there is no text.
        """
        from sae_dist.interpret.measure import measure

        return measure(self, lm, **how)

    def atlas(self, lm: Any = None, **how: Any) -> "Atlas":
        """Open the atlas that was made of the dictionary; see `interpret.charted.atlas_of`.

        Raises:
            ConfigError: there is none, it is damaged, or it is of another dictionary.
        """
        from sae_dist.interpret.charted import atlas_of

        return atlas_of(self, lm, **how)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Dictionary":
        """Return the same dictionary on another device, or in another dtype, in memory."""
        return Dictionary(self.sae.to(torch.device(device or self.device), dtype), self.place)

    def _rows(self, x: Tensor) -> Tensor:
        if x.dim() < 1 or x.shape[-1] != self.width:
            own = x.shape[-1] if x.dim() else 0
            raise ConfigError(f"rows of width {own} for a dictionary of width {self.width}")
        if x.device != self.device:
            raise ConfigError(f"rows on {x.device} and the dictionary on {self.device}; use .to({x.device})")
        return x.reshape(-1, self.width).to(self.dtype)

    def __repr__(self) -> str:
        """Describe the dictionary in a line."""
        what = "transcoder" if self.is_transcoder else "autoencoder"
        where = f" at {self.hook}" if self.hook else ""
        return f"Dictionary({self.kind} {what}, {self.num_latents:,} latents, width {self.width}{where})"
