"""The part that all kinds of dictionaries share: parameters of this shard, initialisation, state.

Letters: as core.types; b = B / T rows, on T shards.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from sae_dist.config.kinds import KINDS
from sae_dist.config.resolved import ResolvedSae
from sae_dist.core.types import Clock, LossTerms, RowTerm, untimed
from sae_dist.dictionary.latents import DeadLatents, fill, unit_blocks
from sae_dist.distributed.mesh import Topology

State = dict[str, tuple[Tensor, str]]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """The arguments that a dictionary is built from.

    widths  (D,): autoencoder; (D, E): transcoder, whose rows are input and target side by side
    rows    rows per step, over all replicas
    tokens  rows of the whole run
    clock   times the phases encode, select and decode
    tf32    products of all latents, and of AuxK, in TF32 on a GPU
    """

    cfg: ResolvedSae
    widths: tuple[int, ...]
    rows: int
    tokens: int
    seed: int
    topology: Topology
    kernels: ModuleType
    device: torch.device
    dtype: torch.dtype
    clock: Clock = untimed
    tf32: bool = False


class Dictionary(torch.nn.Module):
    """The parameters and counters of every kind; a kind adds how codes are computed, and its loss.

    Attributes:
        sharded: parameters that are split by latents: encoder and decoder rows, and vectors [F].
        replicated: parameters that every rank holds whole.
        unit_rows: parameters whose rows the optimizer keeps at unit norm.
        lr_groups: parameters with a learning rate of their own: "bias" (`optim.bias_lr`) for what is added
            to activations or scores, "encoder" (`optim.encoder_lr`) for W_enc and what scales scores.
        scalars: tensors of one number, not trained by the optimizer, that checkpoints and exports need.
        form: how the finished dictionary computes its codes, a key of `export.exported.FORMS`.
        row_terms: with `optim.kind=row_adam`, weight gradients as sums over pairs, collected by the
            backward pass in place of dense gradients; None otherwise.
    """

    W_enc: Parameter
    b_enc: Parameter
    W_dec: Parameter
    sharded: ClassVar[tuple[str, ...]] = ("W_enc", "b_enc", "W_dec")
    replicated: tuple[str, ...] = ("b_dec",)
    unit_rows: tuple[str, ...] = ("W_dec",)
    lr_groups = {"W_enc": "encoder", "b_enc": "bias", "b_dec": "bias"}
    scalars: ClassVar[tuple[str, ...]] = ()
    form: ClassVar[str]

    def __init__(self, setting: Setting):
        super().__init__()
        cfg, topology = setting.cfg, setting.topology
        self.cfg, self.setting, self.kernels, self.clock = cfg, setting, setting.kernels, setting.clock
        self.shard, self.dp, self.consumers = topology.shard, topology.dp, topology.consumers
        self.transcoder = len(setting.widths) == 2
        self.D, self.E = setting.widths[0], setting.widths[-1]
        self.F = cfg.num_latents // self.shard.size
        self.first = self.shard.rank * self.F
        device, dtype = setting.device, setting.dtype

        decoder_FE = torch.empty(self.F, self.E, device=device, dtype=dtype)
        encoder_FD = torch.empty(self.F, self.D, device=device, dtype=dtype)
        place = (setting.seed, self.first, self.first + self.F)
        decoder, encoder = (decoder_FE, 1.0), (encoder_FD, cfg.encoder_scale)
        # An autoencoder's encoder begins as its decoder's transpose.
        fill([decoder] if self.transcoder else [decoder, encoder], unit_blocks(*place, self.E))
        if self.transcoder:
            fill([encoder], unit_blocks(*place, self.D, stream=1))
        self.W_dec, self.W_enc = Parameter(decoder_FE), Parameter(encoder_FD)
        self.b_dec = Parameter(torch.zeros(self.E, device=device, dtype=dtype))
        for name in self.vectors():
            self.register_parameter(name, Parameter(torch.zeros(self.F, device=device, dtype=dtype)))
        if cfg.skip:
            self.W_skip = Parameter(torch.zeros(self.E, self.D, device=device, dtype=dtype))
            self.replicated = (*self.replicated, "W_skip")
        self.variance = torch.ones((), device=device, dtype=dtype)
        self.mean_E = torch.zeros(self.E, device=device, dtype=dtype)
        self.dead = DeadLatents(self.F, cfg.dead_after, device)
        self.row_terms: dict[str, list[RowTerm]] | None = None

    @classmethod
    def vectors(cls) -> list[str]:
        """Return the names of the parameters that have one number per latent, in a fixed order."""
        return [name for name in cls.sharded if name not in ("W_enc", "W_dec")]

    @classmethod
    def to_form(cls, tensors: Tensors) -> Tensors:
        """Return the vectors [F] of the kind's export form, named as fields of `ExportedSae`.

        Args:
            tensors: a checkpoint's `sharded` parameters and `scalars`, of some or all latents. They act on
                scaled activations, and so does what is returned.
        """
        return {f"{name}_F": tensors[name] for name in cls.vectors()}

    @classmethod
    def from_form(cls, vectors: Tensors, norm_F: Tensor, scale: float) -> Tensors:
        """Return parameters and scalars to start training with, from the vectors of a finished dictionary.

        Args:
            vectors: as `to_form` returns them, except that thresholds still act on raw activations. The
                finished dictionary may have another form, so vectors may be missing.
            norm_F: factors by which decoder rows are divided, and codes multiplied.
            scale: factor by which activations are multiplied in training.
        """
        return {name: vectors[f"{name}_F"] for name in cls.vectors() if f"{name}_F" in vectors}

    @classmethod
    def cannot_start_from(cls, vectors: Tensors) -> str | None:
        """Return why training cannot start from these vectors of a finished dictionary; None: it can."""
        return None

    def placements(self) -> dict[str, str]:
        """Return for each parameter "sharded" (split over the shard axis, dim 0) or "replicated"."""
        return {n: "sharded" for n in self.sharded} | {n: "replicated" for n in self.replicated}

    def state(self) -> State:
        """Return every tensor that a checkpoint needs, with its placement."""
        tensors = {name: (getattr(self, name).detach(), kind) for name, kind in self.placements().items()}
        tensors["last_fired"] = (self.dead.last_fired_F, "sharded")
        tensors["variance"] = (self.variance, "replicated")
        tensors["mean"] = (self.mean_E, "replicated")
        return tensors | {name: (getattr(self, name), "replicated") for name in self.scalars}

    @torch.no_grad()
    def start_from(self, rows_bC: Tensor) -> None:
        """Set b_dec to the mean of the first batch's target and the loss's scale to its variance.

        A transcoder does not subtract b_dec from its input; its encoder biases start at -W_enc mean
        instead, which centres the input once. Sums are fp64 over all consumer ranks, so the result does
        not depend on the topology.
        """
        rows = rows_bC.double()
        count = self.consumers.sum(rows.new_tensor([len(rows)]))
        mean_C = self.consumers.sum(rows.sum(0)) / count
        deviation_bE = self.target(rows - mean_C)
        self.variance.copy_((self.consumers.sum(deviation_bE.square().sum()) / count).squeeze())
        self.mean_E.copy_(self.target(mean_C))
        self.b_dec.copy_(self.mean_E)
        if self.transcoder:
            shift_F = -(self.W_enc @ mean_C[: self.D].to(self.W_enc))
            for name in self.vectors():
                if self.lr_groups.get(name) == "bias":
                    getattr(self, name).copy_(shift_F)

    def source(self, rows: Tensor) -> Tensor:
        """Return the input columns of rows [..., D] or [..., D + E]."""
        return rows[..., : self.D]

    def target(self, rows: Tensor) -> Tensor:
        """Return the target columns of rows, the last E; an autoencoder's target is its input."""
        return rows[..., -self.E :]

    def gather_input(self, rows_bC: Tensor) -> Tensor:
        """Return the encoder's input for all rows of the replica, [B, D]; an autoencoder subtracts b_dec."""
        x_BD = self.shard.gather_rows(self.source(rows_bC))
        return x_BD if self.transcoder else x_BD - self.b_dec.detach()

    def centre(self) -> Parameter | None:
        """Return b_dec where the encoder subtracts it, and so gives it a gradient; None in a transcoder."""
        return None if self.transcoder else self.b_dec

    def error(self, rows_bC: Tensor, partial_BE: Tensor, frozen: bool = False) -> Tensor:
        """Return target minus reconstruction for this rank's rows, [b, E].

        Args:
            partial_BE: what this shard's latents reconstruct; summed here over all shards.
            frozen: without gradients for b_dec and the skip connection.
        """
        offset: Tensor = self.b_dec
        if self.cfg.skip:
            offset = offset + self.source(rows_bC) @ self.W_skip.T
        offset = offset.detach() if frozen else offset
        return self.target(rows_bC) - self.shard.scatter_sum_rows(partial_BE) - offset

    def parts(self, rows_bC: Tensor, squares: Tensor, num_codes: Tensor, dead_F: Tensor) -> dict[str, Tensor]:
        """Return this rank's share of the counts that metrics are computed from."""
        return {
            "squared_error": squares.detach(),
            "deviation": (self.target(rows_bC) - self.mean_E).square().sum(),
            "num_codes": num_codes,
            "num_dead": dead_F.sum() / self.dp.size,
        }

    def loss(self, rows_bC: Tensor, tokens: int, with_aux: bool, most_dead: int | None = None) -> LossTerms:
        """Return one step's loss over the rows that this rank drew; the run's loss is the sum over ranks.

        Args:
            rows_bC: scaled activations [b, D], or [b, D + E] for a transcoder.
            tokens: rows seen by the run at the end of this step.
            with_aux: whether any latent was dead after the step before; agreed by all ranks.
            most_dead: no shard has more dead latents than that; agreed by all ranks. None: not known.
        """
        raise NotImplementedError


def dictionary_class(kind: str) -> type[Dictionary]:
    """Return the class of a kind of dictionary, whose file is imported only here.

    Args:
        kind: the value of `sae.kind`.
    """
    module = importlib.import_module(f"sae_dist.dictionary.kinds.{kind}")
    found: type[Dictionary] = getattr(module, KINDS[kind].class_name)
    return found
