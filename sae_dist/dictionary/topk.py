"""The TopK dictionary, split latent-wise over the shard axis.

Letters: B rows of the replica, b = B / T rows that this rank drew and owns, D width, F latents of this
shard, K codes per row, P pairs.

    code  = relu(topk(W_enc (x - b_dec) + b_enc))
    x_hat = code W_dec + b_dec
    loss  = sum |x - x_hat|^2 / (rows * variance)  +  aux_coefficient * AuxK
    AuxK  = sum |e - e_hat|^2 / sum |e|^2, e = x - x_hat held fixed, e_hat from the k_aux best dead latents
            (Gao et al. 2024, arXiv 2406.04093, section A.2)

Every rank's loss is its own rows' share; sums over ranks are in the collectives and in the optimizer.
"""

from types import ModuleType

import torch
from torch import Tensor

from sae_dist.core.config import SaeConfig
from sae_dist.core.types import LossTerms
from sae_dist.dictionary.dead import DeadLatents
from sae_dist.dictionary.init import unit_rows
from sae_dist.dictionary.selection import select
from sae_dist.dictionary.sparse import Pairs, decode, encode
from sae_dist.dist.mesh import Topology


class TopKDictionary(torch.nn.Module):
    """Parameters of this shard, the loss of a step, and the constraint of unit decoder rows.

    Args:
        cfg: resolved `sae` section.
        width: D.
        rows: rows per step over all replicas.
    """

    def __init__(
        self,
        cfg: SaeConfig,
        *,
        width: int,
        rows: int,
        seed: int,
        topology: Topology,
        kernels: ModuleType,
        device: torch.device,
        dtype: torch.dtype,
    ):
        super().__init__()
        assert cfg.num_latents is not None and cfg.aux_k is not None
        self.cfg, self.rows, self.kernels = cfg, rows, kernels
        self.shard, self.dp, self.consumers = topology.shard, topology.dp, topology.consumers
        local = cfg.num_latents // self.shard.size
        first = self.shard.rank * local
        rows_FD = unit_rows(seed, first, first + local, width).to(device, dtype)
        self.W_dec = torch.nn.Parameter(rows_FD)
        self.W_enc = torch.nn.Parameter(cfg.encoder_scale * rows_FD)
        self.b_enc = torch.nn.Parameter(torch.zeros(local, device=device, dtype=dtype))
        self.b_dec = torch.nn.Parameter(torch.zeros(width, device=device, dtype=dtype))
        self.variance = torch.ones((), device=device, dtype=dtype)
        self.dead = DeadLatents(local, cfg.dead_after, device)

    def placements(self) -> dict[str, str]:
        """Which parameters are split over the shard axis (dim 0), and which are on every rank."""
        return {"W_enc": "sharded", "b_enc": "sharded", "W_dec": "sharded", "b_dec": "replicated"}

    def state(self) -> dict[str, tuple[Tensor, str]]:
        """Everything a checkpoint needs, with its placement."""
        tensors = {name: (getattr(self, name).detach(), kind) for name, kind in self.placements().items()}
        tensors["last_fired"] = (self.dead.last_fired_F, "sharded")
        tensors["variance"] = (self.variance, "replicated")
        return tensors

    @torch.no_grad()
    def start_from(self, x_bD: Tensor) -> None:
        """Set b_dec to the mean of the first batch and the loss's scale to its variance.

        Sums are fp64 over all consumer ranks, so the result does not depend on the topology.
        """
        x = x_bD.double()
        count = self.consumers.sum(x.new_tensor([len(x)]))
        mean_D = self.consumers.sum(x.sum(0)) / count
        variance = self.consumers.sum((x - mean_D).square().sum()) / count
        self.b_dec.copy_(mean_D)
        self.variance.copy_(variance.squeeze())

    def loss(self, x_bD: Tensor, tokens: int, with_aux: bool) -> LossTerms:
        """One step's loss of the rows this rank drew, and the counts that metrics are made of.

        Args:
            x_bD: scaled activations [b, D].
            tokens: rows seen by the run at the end of this step.
            with_aux: whether any latent was dead after the step before; agreed by all ranks.
        """
        x_BD = self.shard.gather_rows(x_bD) - self.b_dec.detach()
        with torch.no_grad():
            k = self.cfg.k
            val, idx = self.kernels.encode_topk(x_BD, self.W_enc, self.b_enc, min(k, len(self.W_enc)))
            codes = select(val, idx, k, self.shard, self.kernels)
        pairs = Pairs.of(codes)
        code_P = encode(x_BD, self.W_enc, self.b_enc, self.b_dec, pairs, self.kernels)
        partial_BD = decode(code_P, self.W_dec, pairs, self.kernels)
        error_bD = x_bD - self.shard.scatter_sum_rows(partial_BD) - self.b_dec
        squares = error_bD.square().sum()
        reconstruction = squares / (self.rows * self.variance)

        fired_P = code_P.detach() > 0
        dead_F = self.dead.mask(tokens)
        parts = {
            "squared_error": squares.detach(),
            "num_codes": fired_P.sum(),
            "num_dead": dead_F.sum() / self.dp.size,
        }
        total = reconstruction
        if with_aux and self.cfg.aux_k:
            aux = self._aux_loss(x_BD, error_bD.detach(), dead_F)
            parts["aux"] = aux.detach()
            total = total + self.cfg.aux_coefficient * aux
        self.dead.mark(pairs.latent_P, fired_P, tokens, self.dp)
        return LossTerms(total, parts)

    def _aux_loss(self, x_BD: Tensor, error_bD: Tensor, dead_F: Tensor) -> Tensor:
        """How badly the best dead latents explain the error that the live ones leave.

        Scaled down when fewer than aux_k latents are dead, so that a handful is not torn about.
        """
        aux_k = self.cfg.aux_k
        assert aux_k is not None
        with torch.no_grad():
            latents = dead_F.nonzero().squeeze(1)
            found = min(aux_k, len(latents))
            val_BK = x_BD.new_full((len(x_BD), aux_k), -torch.inf)
            idx_BK = torch.zeros(val_BK.shape, dtype=torch.int64, device=x_BD.device)
            if found:
                val, position = self.kernels.encode_topk(
                    x_BD, self.W_enc[latents], self.b_enc[latents], found
                )
                val_BK[:, :found], idx_BK[:, :found] = val, latents[position]
            codes = select(val_BK, idx_BK, aux_k, self.shard, self.kernels, padded=True)
            totals = self.consumers.sum(
                torch.stack([error_bD.square().sum(), (dead_F.sum() / self.dp.size).to(error_bD.dtype)])
            )
            share = (totals[1] / aux_k).clamp(max=1.0)
        pairs = Pairs.of(codes)
        code_P = encode(x_BD, self.W_enc, self.b_enc, self.b_dec, pairs, self.kernels)
        partial_BD = decode(code_P, self.W_dec, pairs, self.kernels)
        missed_bD = error_bD - self.shard.scatter_sum_rows(partial_BD)
        return share * missed_bD.square().sum() / totals[0]

    @torch.no_grad()
    def constrain_gradient(self) -> None:
        """Remove the part of each decoder row's gradient that only changes the row's length."""
        grad, row = self.W_dec.grad, self.W_dec
        assert grad is not None
        grad.sub_(row * (grad * row).sum(1, keepdim=True))

    @torch.no_grad()
    def constrain(self) -> None:
        """Decoder rows back to unit norm."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True))
