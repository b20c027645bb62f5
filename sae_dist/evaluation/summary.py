"""The evaluation of a run from its folder alone: at the end of training, and by `sae-dist eval`."""

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_dist.config.grid import single
from sae_dist.config.run import Resolved, Single, load_config
from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json
from sae_dist.core.progress import reported
from sae_dist.core.run_folder import CONFIG, EXPORT, FINISHED, METRICS, PLOTS, SUMMARY, TRAINED, read_summary
from sae_dist.core.text import print_line
from sae_dist.core.types import ChunkSource, LlmFacts
from sae_dist.evaluation.ahead import ahead
from sae_dist.evaluation.cautions import cautions
from sae_dist.evaluation.plots import plot_density
from sae_dist.evaluation.quality import cross_entropy as ce
from sae_dist.evaluation.quality.measure import DEAD_TOKENS, Evaluation, evaluate
from sae_dist.evaluation.subject import file_rows, llm_rows
from sae_dist.evaluation.synthetic import evaluate_recovery, held_out
from sae_dist.export.exported import Encode
from sae_dist.export.saelens import WEIGHTS, export_firing_rates, load_exported
from sae_dist.kernels.choose import choose_kernels
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.whole import EARLY_TARGET, load_to_splice, up_to_hook, why_no_room, why_not_held
from sae_dist.metrics.plots import plot_curves
from sae_dist.tokens.source import held_out_tokens

ALWAYS = ("tokens", "steps", "fvu", "l0", "dead_fraction", "ce_recovered", "tokens_per_second")


def evaluate_run(folder: Path, granted: Granted = NOTHING) -> dict[str, Any]:
    """Evaluate `folder`/export on held-out tokens; write summary.json, firing rates and plots.

    Returns:
        The new content of summary.json. A field without a value is None, with a reason next to it.

    Raises:
        ConfigError: the folder is not a finished run, or its LLM or text is not on this machine (a run
            trained from a cache is finished without the numbers that need them).
        DataError: there are no held-out activations.
    """
    return evaluate_runs([folder], granted=granted)[0]


def evaluate_runs(
    folders: Sequence[Path], configs: Sequence[Resolved] = (), granted: Granted = NOTHING
) -> list[dict[str, Any]]:
    """Evaluate as `evaluate_run` several dictionaries of one hook, LLM and text; the LLM runs once for all.

    Args:
        configs: their configs, if they differ from those in the folders.
        granted: see `config.trust`.
    """
    found = configs or [load_config(folder / CONFIG, granted) for folder in folders]
    singles = [single(each, folder) for each, folder in zip(found, folders, strict=True)]
    cfg = singles[0]
    device = device_of(cfg)
    encode = encode_of(cfg, device)
    # The reader of an export names a missing file.
    files = [folder / EXPORT / WEIGHTS for folder in folders]
    held = sum(file.stat().st_size for file in files if file.is_file())
    if (reason := why_no_room(held, device)) is not None:
        print_line(f"not evaluated: {reason}")
        return [_write(each, ce.no_cross_entropy(reason) | {"fvu_reason": reason}) for each in folders]
    saes = [load_exported(folder / EXPORT).to(device) for folder in folders]
    twice = why_no_room(2 * held, device) is None
    parts = [Evaluation(each, sae, encode, twice=twice) for each, sae in zip(singles, saes, strict=True)]
    started = time.monotonic()
    with torch.no_grad(), half_the_cores():
        results = _measure(cfg, parts, device, encode)
    if cfg.is_synthetic:
        with torch.no_grad():
            for each, folder, result, sae in zip(singles, folders, results, saes, strict=True):
                result |= evaluate_recovery(each, sae, encode, folder)
    for each, result, sae in zip(singles, results, saes, strict=True):
        result["cautions"] = cautions(each, sae, result, result.pop("begins", None))
    seconds = (time.monotonic() - started) / len(folders)
    for folder, part in zip(folders, parts, strict=True):
        if part.trained.rows:
            statistics = part.statistics()
            export_firing_rates(folder / EXPORT, statistics.rate_F)
            statistics.save(folder / EXPORT)
    extent = "none" if cfg.eval.tokens == 0 else "short" if cfg.eval.tokens < DEAD_TOKENS else "full"
    own = {"eval_seconds": seconds, "eval_extent": extent}
    return [_write(folder, result | own) for folder, result in zip(folders, results, strict=True)]


def _write(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Write summary.json with what was measured, and the plots."""
    summary: dict[str, Any] = dict.fromkeys(ALWAYS) | read_summary(folder) | result
    if summary.get("status") == TRAINED:  # else training was interrupted, and this is an early export
        summary["status"] = FINISHED
    write_json(folder / SUMMARY, summary)
    if (folder / METRICS).exists():
        plot_curves(folder)
    if "density" in summary:
        plot_density(summary["density"], folder / PLOTS / "latents_density.png")
    return summary


def _measure(
    cfg: Single, parts: Sequence[Evaluation], device: torch.device, encode: Encode
) -> list[dict[str, Any]]:
    """Measure the numbers of each part, all on one stream of activations: that of `cfg`."""
    tokens = cfg.eval.tokens
    if tokens == 0:
        return [ce.no_cross_entropy("eval.tokens=0") for _ in parts]
    if cfg.reads_file:
        evaluate(parts, _rows(file_rows(cfg), device, []), tokens)
        reason = "activations come from a file: there is no LLM to splice into"
        return [part.numbers() | ce.no_cross_entropy(reason) for part in parts]
    if cfg.is_synthetic:
        evaluate(parts, _rows(held_out(cfg), device, []), tokens)
        reason = "activations are synthetic: there is no LLM to splice into"
        return [part.numbers() | ce.no_cross_entropy(reason) for part in parts]
    try:
        return _measure_llm(cfg, parts, device, encode)
    except ConfigError as error:
        if not cfg.reads_cache:
            raise
        # Training from a cache needs neither the LLM nor the text: they may be on another machine.
        reason = f"the cache's language model or text is not on this machine: {error}"
        return [ce.no_cross_entropy(reason) | {"fvu_reason": reason} for _ in parts]


def _measure_llm(
    cfg: Single, parts: Sequence[Evaluation], device: torch.device, encode: Encode
) -> list[dict[str, Any]]:
    facts, _ = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
    if reason := why_not_held(facts, cfg.llm.dtype, device):
        print_line(f"not evaluated: {reason}")
        return [ce.no_cross_entropy(reason) | {"fvu_reason": reason} for _ in parts]
    llm, why_no_ce = _load(cfg, facts, device)
    source = llm_rows(cfg, cfg.tokens, llm)
    excluded: list[int] = []
    rows = reported(_rows(source, device, excluded), len, cfg.eval.tokens, "held-out activations")
    evaluate(parts, ahead(rows), cfg.eval.tokens)
    more = {"eval_excluded": sum(excluded), "begins": bool(facts.prefix)}
    results = [part.numbers() | more for part in parts]
    if why_no_ce is not None:
        return [result | ce.no_cross_entropy(why_no_ce) for result in results]
    ce_tokens = cfg.eval.ce_tokens
    names = [f"sae {number}" for number in range(len(parts))]
    saes = {name: part.sae for name, part in zip(names, parts, strict=True)}
    acts = ce.replacements(saes, parts[0].mean(), encode, cfg.tokens.max_norm_multiple)
    tokens = held_out_tokens(cfg.tokens, facts, seed=cfg.seed, rows=cfg.shuffle.chunk_rows).open(0, None)
    chunks = reported(tokens, lambda each: int(each.keep_NS.sum()), ce_tokens, "tokens for cross-entropy")
    if facts.causal:
        costs = ce.cross_entropy(llm, chunks, acts, ce_tokens)
    else:
        costs = ce.embedding_cosine(llm, chunks, {name: acts[name] for name in names}, ce_tokens)
    return [result | costs[name] for name, result in zip(names, results, strict=True)]


def _load(cfg: Single, facts: LlmFacts, device: torch.device) -> tuple[FrozenLlm, str | None]:
    """Load the whole LLM, or only what the activations need and the reason why there is no cross-entropy."""
    if cfg.eval.ce_tokens == 0:
        return up_to_hook(cfg.llm, facts, device), "eval.ce_tokens=0"
    if facts.target_first:
        return up_to_hook(cfg.llm, facts, device), EARLY_TARGET
    return load_to_splice(cfg.llm, facts, device)


def _rows(source: ChunkSource, device: torch.device, excluded: list[int]) -> Iterator[Tensor]:
    """Yield the rows of each chunk; append to `excluded` how many each left out for their norm."""
    for chunk in source.open(0, None):
        excluded.append(chunk.excluded)
        yield chunk.rows_RD.to(device)


def device_of(cfg: Single) -> torch.device:
    """Return the device the run was trained on if it exists here, else the CPU."""
    return torch.device("cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu")


def encode_of(cfg: Resolved, device: torch.device) -> Encode:
    """Return the run's TopK kernel, or torch's if that does not run here."""
    elsewhere = cfg.kernels == "triton" and device.type == "cpu"
    return choose_kernels("torch" if elsewhere else cfg.kernels).encode_topk


@contextmanager
def half_the_cores() -> Iterator[None]:
    """Use half of the cores for each matrix product, as the LLM and the dictionary run at the same time.

    Ranks had shared the cores until now, often one each. All cores would be too many if anything else runs:
    threads that spin for a descheduled one take up to ten times as long as a single thread.
    """
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // 2))
    try:
        yield
    finally:
        torch.set_num_threads(before)
