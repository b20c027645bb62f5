"""Numbers with units, short meanings, and the reasons of missing ones."""

from dataclasses import dataclass, field
from typing import Any

from sae_dist.config.run import Resolved
from sae_dist.core.text import gib
from sae_dist.evaluation.report.files import RunFiles
from sae_dist.evaluation.table import RESULTS, missing, quantiles
from sae_dist.export.exported import ExportedSae

SPEED = (
    ("Tokens per second", "tokens_per_second", ",.0f", "in training, all processes together"),
    ("Peak memory", "peak_memory_bytes", "GiB", "of the process that held most"),
    ("Processes", "world_size", ",d", ""),
    ("Time on the stream", "stream_seconds", "s", "language model, transport, shuffle"),
    ("Time on the dictionary", "dictionary_seconds", "s", "forward, backward, update"),
    ("Time of the evaluation", "eval_seconds", "s", ""),
    ("GPU time", "gpu_hours", "h", "of training, all GPUs together"),
    ("Energy", "joules", "J", "of all GPUs"),
    ("Energy", "energy_joules", "J", "of all GPUs"),
    ("Energy per million tokens", "joules_per_million_tokens", "J", "of all GPUs"),
    ("Matrix products", "gemm_tflops", "TFLOP/s", "measured before training: what the devices can do"),
)
ENERGY = ("gpu_hours", "joules", "energy_joules", "joules_per_million_tokens")
MANY = 12
FORMS = {key: form for _, key, form, _ in RESULTS} | {"tokens": "count", "lr": ".2e"}
"""The format of a number by its key: the same on cards and in tables."""


@dataclass(frozen=True)
class Number:
    """A line of a table; `value` is empty if there is none, and `means` says why.

    `key` identifies it where labels are the same.
    """

    label: str
    value: str
    means: str = ""
    indent: bool = False
    key: str = ""


@dataclass(frozen=True)
class Entry:
    """A key of a JSON object: a value, or entries below it."""

    key: str
    value: str = ""
    below: list["Entry"] = field(default_factory=list)


def results(summary: dict[str, Any]) -> list[Number]:
    """Return the numbers of the evaluation, in the order of the printed table."""
    reasons, found = missing(summary), []
    for label, key, form, means in RESULTS:
        value = shown(summary[key], form) if summary.get(key) is not None else ""
        if value or key in reasons:
            found.append(
                Number(label.strip(), value, means if value else reasons[key], label.startswith(" "), key)
            )
    return found


def headline(summary: dict[str, Any]) -> list[Number]:
    """Return the few numbers that matter most; a dash for what is not known."""
    wanted = {
        "FVU, held out": "fvu",
        "L0": "l0",
        "CE recovered": "ce_recovered",
        "Dead latents": "dead_fraction",
        "Trained tokens": "tokens",
    }
    return [
        Number(label, shown(summary[key], FORMS[key]) if summary.get(key) is not None else "–")
        for label, key in wanted.items()
    ]


def speed(run: RunFiles) -> list[Number]:
    """Return time, memory and energy of a run."""
    summary = run.summary
    found = [
        Number(label, shown(summary[key], form), means, key=key)
        for label, key, form, means in SPEED
        if summary.get(key) is not None
    ]
    if all(summary.get(key) is None for key in ENERGY):
        reason = summary.get("energy_reason") or summary.get("energy_joules_reason")
        found.append(Number("Energy", "", f"none: {reason}" if reason else "none: no GPU was measured"))
    pauses = summary.get("checkpoint_pauses")
    if isinstance(pauses, dict) and pauses.get("number"):
        text = f"{pauses['number']}, {pauses['seconds']:.1f} s in all, the longest {pauses['longest']:.1f} s"
        found.append(Number("Waited for checkpoints", text, "steps held up while one was copied"))
    balance = summary.get("balance")
    if isinstance(balance, dict):
        found += [Number(f"Balance: {each.key}", each.value) for each in entries(balance) if each.value]
    return found


def dictionary(cfg: Resolved, sae: ExportedSae) -> Number:
    """Return the dictionary's kind and size."""
    used = f"; used as {sae.kind}" if sae.trained_as else ""
    return Number("Dictionary", kind(cfg), f"{sae.num_latents:,} latents of width {sae.width:,}{used}")


def kind(cfg: Resolved) -> str:
    """Return the dictionary's kind in words, such as "topk autoencoder" or "relu transcoder"."""
    return f"{cfg.sae.kind} {'transcoder' if cfg.target_hook else 'autoencoder'}"


def what(run: RunFiles) -> list[Number]:
    """Return what the dictionary was trained on, how, and where."""
    cfg = run.cfg
    text = cfg.tokens.dataset or cfg.tokens.path or "the Python standard library"
    found = []
    if cfg.has_llm:
        place = str(cfg.hook) if cfg.target_hook is None else f"{cfg.hook} to {cfg.target_hook}"
        found += [
            Number("Language model", cfg.llm.name, f"{place}; {cfg.llm.dtype}"),
            Number("Text", text, f"{cfg.tokens.kind}; {cfg.tokens.context or 'default'} tokens a sequence"),
        ]
    else:
        of = cfg.activations.path or f"{cfg.activations.num_features} known features"
        found.append(Number("Activations", cfg.activations.kind, of))
    rate = run.summary.get("lr") or cfg.optim.lr
    learning = f"{cfg.optim.kind}; lr {rate:.3g}" if rate else cfg.optim.kind
    found += [
        Number(
            "Training",
            f"{run.tokens:,} of {plain(cfg.train_tokens)} tokens",
            f"batch {cfg.batch:,}; {learning}; seed {cfg.seed}",
        ),
        Number(
            "Device",
            ", ".join(run.provenance.get("devices", [])) or cfg.device,
            f"{cfg.precision}; {cfg.kernels} kernels",
        ),
        Number("Started", _moment(run.provenance.get("time")), str(run.provenance.get("command", ""))),
    ]
    return found


def of_start(provenance: dict[str, Any]) -> dict[str, Any]:
    """Select what a page shows of provenance.json; the uncommitted changes are too long for it."""
    return {key: value for key, value in provenance.items() if key not in ("diff", "resumed")}


def _moment(iso: str | None) -> str:
    """Format a time: 2026-11-22T01:34:25+00:00 becomes 2026-11-22 01:34 UTC."""
    return "unknown" if not iso else f"{iso[:10]} {iso[11:16]} UTC"


def entries(content: dict[str, Any]) -> list[Entry]:
    """Turn a JSON object into entries; a key without a value shows the reason in its `<key>_reason`."""
    found = []
    for key, value in content.items():
        if value is None and content.get(f"{key}_reason"):
            found.append(Entry(key, f"none: {content[f'{key}_reason']}"))
        elif not (key.endswith("_reason") and content.get(key.removesuffix("_reason"), 0) is None):
            found.append(_entry(key, value))
    return found


def _entry(key: str, value: Any) -> Entry:
    if isinstance(value, dict):
        return Entry(key, "" if value else "empty", entries(value))
    if isinstance(value, list):
        if any(isinstance(each, dict | list) for each in value):
            below = [_entry(str(n), each) for n, each in enumerate(value[:MANY])]
            return Entry(key, f"{len(value)} entries" if len(value) > MANY else "", below)
        more = f" … ({len(value)} in all)" if len(value) > MANY else ""
        return Entry(key, ", ".join(map(plain, value[:MANY])) + more)
    return Entry(key, plain(value))


def plain(value: Any) -> str:
    """Format a JSON scalar with as many digits as one reads."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def shown(value: Any, form: str) -> str:
    """Format a number with its unit."""
    if form == "GiB":
        return gib(value, 2)
    if form == "quantiles":
        return quantiles(value)
    if form == "count":
        return f"{value / 1e6:,.2f}M" if value >= 1e6 else f"{value:,}"
    if form in ("s", "h", "J", "TFLOP/s"):
        digits = f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
        return f"{digits} {form}"
    return f"{value:{form}}"
