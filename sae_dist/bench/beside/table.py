"""The results of the benchmark beside a model: shares of the model's own time within a round, floors, CSV."""

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

from sae_dist.bench.beside.arms import Arm, codes_of_a_row
from sae_dist.bench.beside.price import CLEAN, FULL, ROUNDED, Price
from sae_dist.bench.beside.rates import Rates
from sae_dist.bench.beside.timing import DECODE, PREFILL, Times
from sae_dist.core.text import columns
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel

HEAD = (
    *("", "batch", "phase", "ms/token", "more", "quartiles"),
    *("processor ms", "more", "floor ms", "more", "MiB"),
)
CSV_HEAD = (
    *("way", "batch", "phase", "ms_per_token", "more", "quartiles"),
    *("processor_ms", "processor_more", "floor_ms", "floor_more", "mib"),
)


@dataclass(frozen=True)
class Result:
    """The times of one way at one batch, and the tokens of a prompt."""

    arm: Arm
    batch: int
    context: int
    times: Times

    def tokens(self, phase: str) -> int:
        """Return how many tokens pass a forward."""
        return self.batch * (self.context if phase == PREFILL else 1)

    def floor_s(self, phase: str, lm: LanguageModel, rates: Rates, *, own: bool = False) -> float:
        """Return the least seconds of a forward by operations and weights; `own`: of the model alone."""
        tokens = self.tokens(phase)
        # The embedding is looked up; what is multiplied are the other weights, the head among them.
        table = lm.model.get_input_embeddings().weight
        tied = lm.model.get_output_embeddings() is not None and (
            lm.model.get_output_embeddings().weight is table
        )
        weights = sum(each.numel() for each in lm.model.parameters()) - (0 if tied else table.numel())
        operations = 2.0 * weights * tokens
        moved = float(weights * table.element_size())
        if not own:
            operations += self.arm.operations * tokens
            moved += self.arm.weights(tokens)
        return max(operations / rates.multiplied, moved / rates.copied)


def rows_of(results: list[Result], lm: LanguageModel, rates: Rates) -> list[tuple[str, ...]]:
    """Return the cells of the table, in the order of HEAD."""
    rows: list[tuple[str, ...]] = []
    for phase in (PREFILL, DECODE):
        bare: dict[int, Result] = {}
        for each in results:
            wall = each.times.wall[phase]
            if not wall:
                continue
            own = bare.setdefault(each.batch, each)
            per_token = 1e3 / each.tokens(phase)
            low, middle, high = more(wall, own.times.wall[phase])
            busy, own_busy = each.times.processor[phase], own.times.processor[phase]
            floor, alone = (each.floor_s(phase, lm, rates, own=is_own) for is_own in (False, True))
            cells = [
                each.arm.name,
                str(each.batch),
                phase,
                f"{per_token * median(wall):.3f}",
                "" if each is own else f"{middle:+.1%}",
                "" if each is own else f"{low:+.1%} {high:+.1%}",
                f"{per_token * median(busy):.3f}",
                "" if each is own else f"{more(busy, own_busy)[1]:+.1%}",
                f"{per_token * floor:.4f}",
                "" if each is own else f"{floor / alone - 1:+.1%}",
                f"{each.times.peak / 2**20:.0f}",
            ]
            rows.append(tuple(cells))
    return rows


def more(ours: list[float], alone: list[float]) -> tuple[float, float, float]:
    """Return by which share times exceed those of the same rounds: quartiles, the median in the middle."""
    shares = [one / other - 1 for one, other in zip(ours, alone, strict=True)]
    if len(shares) == 1:
        return shares[0], shares[0], shares[0]
    low, middle, high = quantiles(shares, n=4, method="inclusive")
    return low, middle, high


def write_csv(path: Path, results: list[Result], lm: LanguageModel, rates: Rates) -> None:
    """Write the table's rows."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([CSV_HEAD, *rows_of(results, lm, rates)])


def format_results(
    d: Dictionary,
    lm: LanguageModel,
    results: list[Result],
    rates: Rates,
    cost: Price | str,
    watched: str,
    remark: str,
) -> str:
    """Return the tables with what they mean."""
    where = torch.cuda.get_device_name() if lm.device.type == "cuda" else f"{torch.get_num_threads()} threads"
    held = d.W_enc.nbytes + d.W_dec.nbytes
    E = d.W_dec.shape[1]
    lines = [
        f"{d.kind} dictionary of {d.num_latents:,} latents at {d.hook} of {lm.name}, {results[0].context} "
        f"tokens a prompt, {lm.device.type} ({where}), torch {torch.__version__}{remark}",
        f"weights {held / 2**20:,.0f} MiB; a token: encode {2 * d.width * d.num_latents / 1e6:.3f} MFLOP, "
        f"decode {2 * codes_of_a_row(d) * E / 1e6:.4f} MFLOP; copy {rates.copied / 1e9:.1f} GB/s, product "
        f"{rates.multiplied / 1e9:.0f} GFLOP/s",
        "medians over rounds; more: than the model alone in the same round, or its floor; MiB: the most that "
        "a round took beyond what was held",
        "",
        *columns([HEAD, *rows_of(results, lm, rates)]),
        "",
        f"watch list: {watched}",
        said(cost),
    ]
    return "\n".join(lines)


def said(cost: Price | str) -> str:
    """Return the price in a line."""
    if isinstance(cost, str):
        return f"price of bfloat16 not measured: {cost}"
    nats = ", ".join(f"{name} {cost.entropy[name]:.4f}" for name in (CLEAN, FULL, ROUNDED))
    return (
        f"cross-entropy on {cost.tokens:,} held-out tokens: {nats}; rounding adds {cost.more:+.5f} +- "
        f"{cost.error:.5f} nats (standard error over chunks, paired), {cost.changed:.2%} of codes are others"
    )
