"""The benchmark of a dictionary beside its model: times, floors, memory, and the price of smaller weights.

Letters: as core.types.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.bench.beside.arms import arms, by_rate
from sae_dist.bench.beside.price import Price, price
from sae_dist.bench.beside.rates import measured
from sae_dist.bench.beside.table import Result, format_results, write_csv
from sae_dist.bench.beside.timing import time_arms
from sae_dist.bench.quality.plan import make_bench_folder
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.load import load
from sae_dist.interpret.model import LanguageModel, model
from sae_dist.interpret.watch import Watched
from sae_dist.metrics.stolen import Stolen
from sae_dist.tokens.source import held_out_tokens


@dataclass(frozen=True)
class BesidePlan:
    """A list of what is measured; see `sae-dist bench beside --help`."""

    folder: Path
    run: str
    batches: tuple[int, ...]
    watch: int
    context: int
    decode: int
    rounds: int
    ce_tokens: int
    device: str


def run_beside(plan: BesidePlan) -> str:
    """Measure everything; write beside.csv and beside.md, and return the latter.

    Raises:
        ConfigError: there is no dictionary, or its model is not on this machine.
    """
    d = load(plan.run, device=plan.device)
    lm = model(d)
    make_bench_folder(plan.folder)
    stolen = Stolen()
    rates = measured(lm.device)
    named = by_rate(d, min(plan.watch, d.num_latents))
    watched = watch_list(d, lm, named, plan.context)
    ways = arms(d, lm, named, watched.threshold)
    results: list[Result] = []
    steps = plan.decode if lm.causal else 0
    for batch in plan.batches:
        ids_NS = prompts(d, lm, batch, plan.context, steps)
        for arm, times in zip(ways, time_arms(lm, ways, ids_NS, steps, plan.rounds), strict=True):
            results.append(Result(arm, batch, ids_NS.shape[1] - steps, times))
        print(f"batch {batch}: done", file=sys.stderr, flush=True)
    cost: Price | str = "--ce-tokens 0" if plan.ce_tokens == 0 else price(d, lm, plan.ce_tokens)
    write_csv(plan.folder / "beside.csv", results, lm, rates)
    text = format_results(d, lm, results, rates, cost, watched.approximate or "exact", stolen.remark())
    (plan.folder / "beside.md").write_text(text + "\n", encoding="utf-8")
    return text


def prompts(d: Dictionary, lm: LanguageModel, batch: int, context: int, steps: int) -> Tensor:
    """Return prompts and the tokens after them [N, S + steps] of the run's text; without a run, random ones.

    Prompts are shorter than `context` if the model's own limit leaves no room for the tokens decoded.
    """
    limit = lm.facts.context if lm.facts is not None else None
    context = max(min(context + steps, limit or context + steps), steps + 2)
    first = torch.tensor(lm.prefix, dtype=torch.int64)
    needed = batch * (context - len(first))
    run = d.place.run
    if run is not None and run.has_llm and lm.facts is not None:
        source = held_out_tokens(run.tokens, lm.facts, seed=run.seed, rows=run.shuffle.chunk_rows)
        parts, found = [], 0
        for chunk in source.open(0, None):
            parts.append(chunk.ids_NS[chunk.keep_NS])
            found += len(parts[-1])
            if found >= needed:
                break
        text = torch.cat(parts)
        text = text.repeat(-(-needed // len(text)))[:needed]
    else:
        draw = torch.Generator().manual_seed(0)
        size = lm.model.get_input_embeddings().num_embeddings
        text = torch.randint(0, size, (needed,), generator=draw)
    ids_NS = torch.cat([first.expand(batch, -1), text.view(batch, -1)], 1)
    return ids_NS.to(lm.device)


def watch_list(d: Dictionary, lm: LanguageModel, named: list[int], context: int) -> Watched:
    """Watch prompts until decisions are compared, and return what was found."""
    watching = d.watch(lm, named)
    with torch.no_grad(), watching:
        for ids_S in prompts(d, lm, 16, context, 0):
            lm.reader(**lm.as_trained(ids_S))
    return watching
