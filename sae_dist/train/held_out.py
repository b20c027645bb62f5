"""Held-out activations for evaluation in training: taken once before the first step, for any topology.

The first consumer of a group computes or reads them by itself, as `sae-dist eval` does: it loads the LLM up
to the hook, and frees it. Each consumer keeps its share on the host: row r belongs to the consumer numbered r
modulo their number, as rows of a batch do. A run that is resumed takes them again.

With `eval.ce` the first consumer loads the whole LLM instead, and keeps it.

Letters: as core.types; N rows of all consumers, n of this one.
"""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from sae_dist.config.grid import Pair, captured
from sae_dist.config.run import Resolved
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import ChunkSource, LlmFacts, Precision, TokenChunk
from sae_dist.distributed.mesh import Topology
from sae_dist.llm.capture import LlmChunkSource, spare_rows
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.next_token import losses, sparing_outliers, targets
from sae_dist.llm.whole import why_not_spliced
from sae_dist.tokens.source import held_out_tokens
from sae_dist.transport.file import FileChunkSource, open_array
from sae_dist.transport.ground_truth import GroundTruth
from sae_dist.transport.synthetic import SyntheticChunkSource


@dataclasses.dataclass(frozen=True)
class Shares:
    """The rows of one consumer, [n, C] of `count` rows, on the host, and the mean of all rows, [C]."""

    rows_nC: Tensor
    count: int
    mean_C: Tensor


class Splice:
    """The LLM on the consumer that holds it, and the held-out tokens on which activations are replaced.

    In a grid of hooks `at` makes one of each place, by which the losses are measured.
    """

    ablated: float

    def __init__(self, llm: FrozenLlm, chunks: list[TokenChunk], multiple: float | None):
        self.llm, self.chunks, self.multiple = llm, chunks, multiple
        self.num_targets = sum(int(targets(chunk).sum()) for chunk in chunks)
        self.clean = self._mean(None)[0]

    def at(self, place: LlmFacts, mean_C: Tensor) -> "Splice":
        """Return the same for one place of the LLM, with the loss when every row there is the mean.

        Args:
            mean_C: of the held-out activations at all places.
        """
        found = copy.copy(self)
        found.llm = FrozenLlm(self.llm.model, place, with_head=True)
        mean = mean_C[self.llm.facts.stretch(place.hook, place.target_hook)]
        mean_E = mean[-(place.target_width or place.width) :]
        found.ablated = found._mean(lambda rows, _: mean_E.to(rows).expand(len(rows), -1))[0]
        return found

    def rows(self) -> Iterator[Tensor]:
        """Yield the activations of each chunk's kept tokens, [kept, C], those of outlying norm included."""
        for chunk in self.chunks:
            yield self.llm.activations(chunk)

    def numbers(self, new_NE: Tensor) -> dict[str, float]:
        """Return CE and KL with the rows [N, E] of all chunks in place of the activations."""
        spliced, kl = self._mean(lambda rows, place: new_NE[place : place + len(rows)].to(rows))
        found = {"eval/ce_clean": self.clean, "eval/ce_sae": spliced, "eval/kl": kl}
        gap = self.ablated - self.clean
        return found | ({"eval/ce_recovered": (self.ablated - spliced) / gap} if gap > 0 else {})

    def _mean(self, new: Callable[[Tensor, int], Tensor] | None) -> tuple[float, float]:
        """Return nats per target, and KL from the clean distribution.

        Args:
            new: returns the rows that replace these, of which so many came before; None replaces nothing.
        """
        entropy = divergence = 0.0
        place = 0
        for chunk in self.chunks:
            clean = self.llm.logits(chunk, None)
            if new is None:
                entropy += losses(clean, chunk)[0]
                continue

            def replace(rows: Tensor, place: int = place) -> Tensor:
                new_RE, width = new(rows, place), self.llm.facts.width
                target = rows[:, -new_RE.shape[1] :]
                return sparing_outliers(rows[:, :width], target, new_RE, self.multiple)

            each = losses(self.llm.logits(chunk, replace), chunk, clean)
            entropy, divergence = entropy + each[0], divergence + each[1]
            place += int(chunk.keep_NS.sum())
        return entropy / self.num_targets, divergence / self.num_targets


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The data of evaluations in training.

    Attributes:
        spliced: this consumer's share of the activations at the tokens of `splice`; None without eval.ce.
        splices: of each place of the LLM, on the consumer that holds it, with eval.ce; empty elsewhere.
    """

    plain: Shares
    spliced: Shares | None = None
    splices: Mapping[Pair, Splice] = dataclasses.field(default_factory=dict)


def take(cfg: Resolved, topology: Topology, device: torch.device, columns: int) -> HeldOut:
    """Take the held-out activations; every consumer of the group calls this at the same time.

    Args:
        columns: width of a row.

    Raises:
        ConfigError: the LLM is not here, or there are none.
    """
    dtype = Precision.of(cfg.precision).master
    splice: Splice | None = None
    plain: Iterator[Tensor] = iter(())
    spliced: Iterator[Tensor] = iter(())
    with torch.no_grad():
        if topology.leads:
            source, splice = open_held_out(cfg, device)
            plain = (chunk.rows_RD for chunk in source.open(0, None))
        shares = shared_out(plain, cfg.eval.rows, topology, device, dtype, columns)
        if shares.count == 0:
            raise ConfigError("eval.every: there are no held-out activations; give more text or rows")
        if cfg.eval.ce is None:
            return HeldOut(shares)
        splices: dict[Pair, Splice] = {}
        if splice is not None:
            for place in splice.llm.facts.pairs:
                splices[place.hook, place.target_hook] = splice.at(place, shares.mean_C)
            spliced = splice.rows()
        return HeldOut(shares, shared_out(spliced, None, topology, device, dtype, columns), splices)


def shared_out(
    parts: Iterator[Tensor],
    most: int | None,
    topology: Topology,
    device: torch.device,
    dtype: torch.dtype,
    columns: int,
) -> Shares:
    """Deal out rows that only the first consumer has, at most `most` of them; None deals out all."""
    consumers, own, count = topology.consumers, [], 0
    total_C = torch.zeros(columns, dtype=torch.float64, device=device)
    while most is None or count < most:
        part = next(parts, None)
        there = consumers.max(torch.tensor([0 if part is None else len(part)], device=device))
        if not (rows := int(there)):
            break
        blank = torch.zeros(rows, columns, dtype=dtype, device=device)
        whole = consumers.sum(blank if part is None else part.to(device, dtype))
        whole = whole[: None if most is None else most - count]
        total_C += whole.sum(0, dtype=torch.float64)
        own.append(whole[topology.rows_dealt(count)].cpu())
        count += len(whole)
    rows_nC = torch.cat(own) if own else torch.zeros(0, columns, dtype=dtype)
    return Shares(rows_nC, count, (total_C / max(count, 1)).to(dtype))


def open_held_out(cfg: Resolved, device: torch.device) -> tuple[ChunkSource, Splice | None]:
    """Open held-out chunks, in the order that `sae-dist eval` reads them; keep the LLM for eval.ce."""
    rows, multiple = cfg.shuffle.chunk_rows, cfg.tokens.max_norm_multiple
    master = Precision.of(cfg.precision).master
    if cfg.reads_file:
        array = open_array(cfg.activations.source_path, cfg.activations.key)
        found = FileChunkSource(
            array, lanes=1, rows=rows, seed=0, held_out=True, dtype=master, max_norm_multiple=multiple
        )
        return found, None
    if cfg.is_synthetic:
        truth = GroundTruth.of(cfg.activations, cfg.seed)
        made = SyntheticChunkSource(truth, lanes=1, rows=rows, seed=cfg.seed, held_out=True, dtype=master)
        return made, None
    first, more = captured(cfg)
    facts, _ = llm_facts(cfg.llm, *first, more)
    whole = cfg.eval.ce is not None
    # Of a grid's places those differ in this alone: is a target reached before its hook?
    for place in {each.target_first: each for each in facts.pairs}.values() if whole else ():
        if reason := why_not_spliced(cfg.llm, place, device):
            raise ConfigError(f"eval.ce={cfg.eval.ce}: {reason}; leave eval.ce out")
    uncompiled = dataclasses.replace(cfg.llm, compile=False)
    dtype = getattr(torch, cfg.llm.dtype)
    llm = FrozenLlm.load(uncompiled, facts, device=device, dtype=dtype, with_head=whole)
    spare = spare_rows(rows, cfg.tokens)
    tokens = held_out_tokens(cfg.tokens, facts, seed=cfg.seed, rows=rows + spare)
    source = LlmChunkSource(llm, tokens, rows=rows, spare=spare, max_norm_multiple=multiple)
    if cfg.eval.ce is None:
        return source, None
    chunks, kept = [], 0
    for chunk in held_out_tokens(cfg.tokens, facts, seed=cfg.seed, rows=rows).open(0, None):
        chunks.append(chunk)
        kept += int(chunk.keep_NS.sum())
        if kept >= cfg.eval.ce:
            break
    return source, Splice(llm, chunks, multiple)
