"""The loss of kinds without selection: every latent has a code, computed a tile of latents at a time.

A kind is an elementwise function of z = W_enc (x - b_dec) and of its own vectors. The forward pass keeps no
tile, and the backward pass computes each tile again, so at most one [rows, tile] is in memory, for any number
of latents.

Letters: as core.types; b = B / T rows, on T shards; N columns of `partial`, E for each reconstruction.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.types import Clock, LossTerms, untimed
from sae_dist.dictionary.base import Dictionary
from sae_dist.kernels.products import products

TILE_ELEMENTS = 1 << 22
"""Most scores in a tile: 16 MB in fp32."""
CUDA_TILE_ELEMENTS = 1 << 26
"""The same on a GPU, 256 MB: few launches, and products large enough for all of its processors."""


def tile_size(rows: int, device: torch.device) -> int:
    """Return how many latents a tile of so many rows has."""
    most = CUDA_TILE_ELEMENTS if device.type == "cuda" else TILE_ELEMENTS
    return max(1, most // rows)


@dataclass
class Tile:
    """The contribution of one tile of latents to a step's loss and counts.

    partial_BN  its part of one or more reconstructions, side by side
    penalty     the sparsity term, summed over rows and latents, before its coefficient
    extra       a further term, its coefficient included; 0 for kinds without one
    num_codes   number of codes above zero
    fired_f     which latents have a code above zero
    """

    partial_BN: Tensor
    penalty: Tensor
    extra: Tensor
    num_codes: Tensor
    fired_f: Tensor


class TiledDictionary(Dictionary):
    """A dictionary with a code for every latent. A kind defines `tile`, and overrides what differs."""

    def tile(self, z_Bf: Tensor, W_dec_fE: Tensor, vectors: dict[str, Tensor]) -> Tile:
        """Return the contribution of a tile of latents, from z and the tile's part of each vector by name."""
        raise NotImplementedError

    def loss(self, rows_bC: Tensor, tokens: int, with_aux: bool, most_dead: int | None = None) -> LossTerms:
        """Return one step's loss over the rows that this rank drew; see `Dictionary.loss`."""
        x_BD = self.gather_input(rows_bC)
        tiles = self.tiles(x_BD)
        partial_BN = tiles.partial_BN
        with self.clock("decode"):
            error_bE = self.error(rows_bC, partial_BN[:, : self.E])
            squares = error_bE.square().sum()
        penalty = self.sparsity_loss(tiles.penalty, tokens)
        own = squares + penalty + tiles.extra + self.other_losses(rows_bC, partial_BN[:, self.E :])
        total = own / (self.setting.rows * self.variance)

        dead_F = self.dead.mask(tokens)
        parts = self.parts(rows_bC, squares, tiles.num_codes, dead_F)
        parts["sparsity"] = penalty.detach() / (self.setting.rows * self.variance)
        self.dead.mark(torch.arange(self.F, device=x_BD.device), tiles.fired_f, tokens, self.dp)
        return LossTerms(total, parts)

    def sparsity_loss(self, penalty: Tensor, tokens: int) -> Tensor:
        """Return this rank's share of the penalty, its coefficient included."""
        return self.coefficient(tokens) * penalty

    def other_losses(self, rows_bC: Tensor, partial_BN: Tensor) -> Tensor:
        """Return loss terms of further reconstructions, whose parts are side by side in `partial_BN`."""
        return rows_bC.new_zeros(())

    def coefficient(self, tokens: int) -> float:
        """Return the penalty's coefficient: `sae.sparsity` in the kind's unit, after its warmup."""
        assert self.cfg.sparsity is not None and self.cfg.sparsity_warmup is not None
        rising = self.cfg.sparsity_warmup * self.setting.tokens
        return self.cfg.sparsity * self.unit() * (min(1.0, tokens / rising) if rising > 0 else 1.0)

    def unit(self) -> float:
        """Return the factor of `sae.sparsity` that makes good values of it independent of the width.

        sqrt(E) for penalties that are sums of codes: activations have norm sqrt(E), their squared error is
        of the order of E and the sum of their codes of the order of sqrt(L0 E).
        """
        return math.sqrt(self.E)

    def tiles(self, x_BD: Tensor) -> Tile:
        """Return the sum of all tiles, with `fired_f` for all latents of the shard."""
        names = self.vectors()
        weights = [getattr(self, name) for name in ("W_enc", "W_dec", *names)]

        def one(
            clock: Clock, centre_D: Tensor | None, W_enc_fD: Tensor, W_dec_fE: Tensor, *vectors: Tensor
        ) -> Tile:
            with clock("encode"):
                z_Bf = _Scores.apply(x_BD, W_enc_fD, centre_D)
            with clock("decode"):
                return self.tile(z_Bf, W_dec_fE, dict(zip(names, vectors, strict=True)))

        size = tile_size(len(x_BD), x_BD.device)
        return Tile(*_Tiles.apply(one, self.clock, self.setting.tf32, size, self.centre(), *weights))


class _Tiles(torch.autograd.Function):
    """A sum of a function over tiles of latents; backward computes each tile again and frees it at once.

    One torch.utils.checkpoint per tile gives the same gradients, but kept most tiles alive until the end of
    the backward pass: three times the memory of a dense step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        one: Callable[..., Tile],
        clock: Clock,
        tf32: bool,
        size: int,
        centre_D: Tensor | None,
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.one, ctx.tf32, ctx.size, ctx.centred = one, tf32, size, centre_D is not None
        ctx.save_for_backward(*weights, *([] if centre_D is None else [centre_D]))
        sums: list[Tensor] = []
        fired: list[Tensor] = []
        for parts in zip(*(weight.split(size) for weight in weights), strict=True):
            with products(tf32=tf32):
                tile = one(clock, centre_D, *parts)
            new = [tile.partial_BN, tile.penalty, tile.extra, tile.num_codes]
            sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
            fired.append(tile.fired_f)
        found = (*sums, torch.cat(fired))
        ctx.mark_non_differentiable(*found[3:])
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        weights = ctx.saved_tensors
        centre_D = weights[-1].detach().requires_grad_() if ctx.centred else None
        weights = weights[:-1] if ctx.centred else weights
        grad_centre = torch.zeros_like(centre_D) if centre_D is not None else None
        grad_weights = [torch.empty_like(weight) for weight in weights]
        targets = zip(*(g.split(ctx.size) for g in grad_weights), strict=True)
        for parts, places in zip(
            zip(*(w.split(ctx.size) for w in weights), strict=True), targets, strict=True
        ):
            leaves = [part.detach().requires_grad_() for part in parts]
            with torch.enable_grad(), products(tf32=ctx.tf32):
                # What is computed again belongs to the backward pass.
                tile = ctx.one(untimed, centre_D, *leaves)
                outs = [tile.partial_BN, tile.penalty, tile.extra]
                pulled = [(out, grad) for out, grad in zip(outs, grads, strict=False) if out.requires_grad]
            wanted = [*leaves, centre_D] if centre_D is not None else leaves
            with products(tf32=ctx.tf32):
                given = torch.autograd.grad([o for o, _ in pulled], wanted, [g for _, g in pulled])
            for place, value in zip(places, given, strict=False):
                place.copy_(value)
            if grad_centre is not None:
                grad_centre += given[-1]
        return None, None, None, None, grad_centre, *grad_weights


class _Scores(torch.autograd.Function):
    """The product x W^T of a centred x; its gradient for the centre needs none for each row of x."""

    @staticmethod
    def forward(ctx: Any, x_BD: Tensor, W_fD: Tensor, centre_D: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_BD, W_fD)
        return x_BD @ W_fD.T

    @staticmethod
    def backward(ctx: Any, grad_Bf: Tensor) -> tuple[Tensor | None, ...]:
        x_BD, W_fD = ctx.saved_tensors
        centre = -(grad_Bf.sum(0) @ W_fD) if ctx.needs_input_grad[2] else None
        return None, grad_Bf.T @ x_BD, centre
