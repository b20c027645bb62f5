"""Evaluation in training: the dictionary as it would be exported, still split over ranks, on held-out rows.

Nothing of the run changes: no counter, threshold, lane or random state.

Letters: as core.types; N rows of all ranks, n of this one.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sae_dist.core.reconstruction import Fidelity, firing_counts, firing_shares
from sae_dist.dictionary.selection import select
from sae_dist.dictionary.sparse import Pairs
from sae_dist.export.exported import ExportedSae, SparseCodes
from sae_dist.export.fold import tensor_names, to_exported
from sae_dist.kernels.choose import choose_kernels
from sae_dist.kernels.reference import pair_rows
from sae_dist.train.held_out import HeldOut, Shares, take
from sae_dist.train.state import Rank, Run


class Evaluator:
    """The evaluations of one dictionary in training.

    Args:
        columns: the part of a held-out row that this dictionary reads.
        every: steps between evaluations.
    """

    def __init__(self, held_out: HeldOut, columns: slice, every: int):
        self.held_out, self.columns, self.every = held_out, columns, every

    @torch.no_grad()
    def evaluate(self, run: Run) -> dict[str, float]:
        """Return the columns `eval/...` of the dictionary as it is; every consumer of the group calls this.

        CE and KL are only on the rank that holds the LLM, which is the one that writes metrics.
        """
        sae, plain = shard_of(run), self.held_out.plain
        topology = run.topology
        fidelity = Fidelity(plain.mean_C[self.columns][-run.widths[-1] :].to(run.device))
        fired_F = torch.zeros(sae.num_latents, dtype=torch.int64, device=run.device)
        for rows, y_hat, codes, valid_B in self.batches(run, sae, plain):
            fidelity.add(rows[:, -run.widths[-1] :], y_hat)
            row_P = pair_rows(codes.offsets_B, len(codes.latent_P))
            fired_F += torch.bincount(codes.latent_P[valid_B[row_P]], minlength=len(fired_F))
        topology.consumers.sum(fidelity.sums)
        topology.dp.sum(fired_F)
        counts = topology.shard.sum(torch.cat([firing_counts(fired_F, plain.count), fired_F.sum()[None]]))
        found = fidelity.numbers() | firing_shares(counts[:-1], sae.num_latents * topology.num_shards)
        found["l0"] = int(counts[-1]) / plain.count
        values = {f"eval/{key}": each for key, each in found.items() if isinstance(each, float)}
        if self.held_out.spliced is not None:
            new_NE = self.spliced(run, sae, self.held_out.spliced)
            splice = self.held_out.splices.get((run.cfg.hook, run.cfg.target_hook))
            if splice is not None:
                values |= splice.numbers(new_NE)
        return values

    def batches(
        self, run: Run, sae: ExportedSae, shares: Shares
    ) -> Iterator[tuple[Tensor, Tensor, SparseCodes, Tensor]]:
        """Yield this rank's rows [b, C], reconstructions [b, E], codes of the replica's rows, and valid_B.

        Ranks whose share is smaller, by one row, fill up with a row of zeros, which is left out again;
        `valid_B` is false for those among the replica's rows.
        """
        topology = run.topology
        size = max(1, run.cfg.batch // topology.num_consumers)
        longest = -(-shares.count // topology.num_consumers)
        for first in range(0, longest, size):
            own = shares.rows_nC[first : first + size, self.columns].to(run.device)
            wanted = min(size, longest - first)
            rows_bC = torch.zeros(wanted, own.shape[1], dtype=own.dtype, device=run.device)
            rows_bC[: len(own)] = own
            valid_b = torch.arange(wanted, device=run.device) < len(own)
            x_BD = topology.shard.gather_rows(rows_bC[:, : run.widths[0]].contiguous())
            valid_B = topology.shard.gather_rows(valid_b.long()) > 0
            codes = codes_of(sae, x_BD, run)
            partial_BE = choose_kernels(run.cfg.kernels).decode(
                codes.latent_P, codes.value_P, codes.offsets_B, sae.W_dec_FE
            )
            y_hat = topology.shard.scatter_sum_rows(partial_BE) + sae.b_dec_E
            if sae.W_skip_ED is not None:
                y_hat = y_hat + rows_bC[:, : run.widths[0]] @ sae.W_skip_ED.T
            yield own, y_hat[: len(own)], codes, valid_B

    def spliced(self, run: Run, sae: ExportedSae, shares: Shares) -> Tensor:
        """Compute the reconstructions of all rows, [N, E], in their order, on every rank."""
        consumers = run.topology.consumers
        longest = -(-shares.count // consumers.size)
        own = torch.cat([y_hat for _, y_hat, _, _ in self.batches(run, sae, shares)])
        padded = own.new_zeros(longest, own.shape[1])
        padded[: len(own)] = own
        whole = consumers.gather_rows(padded).view(consumers.size, longest, -1)
        return whole.transpose(0, 1).reshape(consumers.size * longest, -1)[: shares.count]


def evaluate_all(rank: Rank, runs: Sequence[Run], every: int, width: int) -> None:
    """Let every dictionary be evaluated in training, on its columns of the same held-out rows.

    Args:
        every: tokens between evaluations.
        width: of a row of the stream.
    """
    facts, held_out = rank.facts, take(rank.cfg, rank.topology, rank.device, width)
    for run in runs:
        columns = facts.stretch(run.cfg.hook, run.cfg.target_hook) if facts else slice(0, width)
        run.evaluator = Evaluator(held_out, columns, max(1, every // rank.cfg.batch))


def shard_of(run: Run) -> ExportedSae:
    """Return this rank's latents as an export would hold them, in raw activation space, copying little."""
    tensors = {name: tensor for name, (tensor, _) in run.dictionary.state().items()} | {"shift": run.shift_C}
    kind = type(run.dictionary)
    names = tensor_names(run.cfg, kind)
    return to_exported(run.cfg, kind, {name: tensors[name] for name in names}, run.scales)


def codes_of(sae: ExportedSae, x_BD: Tensor, run: Run) -> SparseCodes:
    """Return this shard's codes above zero; TopK selects over all shards."""
    kernels = choose_kernels(run.cfg.kernels)
    if sae.kind != "topk":
        return sae.encode(x_BD, kernels.encode_topk)
    assert sae.b_enc_F is not None and sae.k is not None
    centred_BD = x_BD if sae.transcoder else x_BD - sae.b_dec_E
    found = kernels.encode_topk(centred_BD, sae.W_enc_FD, sae.b_enc_F, min(sae.k, sae.num_latents))
    pairs = Pairs.of(select(found[0], found[1], sae.k, run.topology.shard, kernels))
    _, (_, above_zero) = pairs.split((pairs.score_P > 0).long(), 2)
    return SparseCodes(above_zero.latent_P, above_zero.score_P, above_zero.offsets_B)
