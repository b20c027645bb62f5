"""The list of every number that a run writes: name, unit, meaning, and when it is present.

A new metric is one `Metric` in the table of its group. No number is computed here: those of training come
from a dictionary's loss (`parts`) and `train/meter.py`, those of a trained dictionary from
`evaluation/quality`, those of machines from `nvml.py` and `telemetry.py`.

`python -m sae_dist.metrics.catalogue` writes README.md next to this file; tests compare that file with this
table, and the rows of real runs too.
"""

import re
from pathlib import Path

from sae_dist.core.run_folder import METRICS
from sae_dist.metrics.evaluated import EVAL
from sae_dist.metrics.metric import ALWAYS, Metric
from sae_dist.metrics.stream import STREAM

SELECTS = "with `sae.kind=topk`, `batchtopk`, `matryoshka`"
PRODUCERS = "with producers"
PHASES = "`device=cpu` always; on a GPU once the device has passed the first step"
SAMPLED = "with `metrics.telemetry_s`, in rows that follow a new sample"
GPUS = "as host/, if the GPU supports it"


ROW = (
    Metric("step", "steps", "steps made so far"),
    Metric("tokens", "activations", "activations trained on so far, all replicas together: the x-axis"),
    Metric(
        "loss/total", "1", "the loss: squared error / variance + sparsity penalty + AuxK; mean over steps"
    ),
    Metric(
        "loss/fvu",
        "1",
        "sum |x - x^|^2 / sum |x - m|^2 over the row's steps, m the first batch's mean; scaled activations",
    ),
    Metric(
        "loss/aux",
        "1",
        "AuxK: sum |e - e^|^2 / sum |e|^2, e^ from dead latents; mean over steps, 0 without AuxK",
    ),
    Metric(
        "loss/sparsity",
        "1",
        "the sparsity penalty times its coefficient, mean over steps; 0 in kinds without a penalty",
    ),
    Metric("sparsity/l0", "codes", "codes above zero per activation"),
    Metric("latents/dead_fraction", "share", "latents that have not fired for `sae.dead_after` tokens"),
    Metric("optim/lr", "1", "the decoder's learning rate at the last step"),
    Metric("optim/grad_norm", "1", "global norm of the gradient before clipping, at the last step"),
    *STREAM,
    Metric(
        "perf/tokens_per_second", "activations/s", "activations per second of wall time since the last row"
    ),
    Metric("perf/wall_ms", "ms", "wall time per step since the last row; the phases below are parts of it"),
    Metric(
        "perf/receive_ms",
        "ms/step",
        "the batch: waiting for chunks, or running the LLM; shuffling and scaling",
        PHASES,
    ),
    Metric(
        "perf/encode_ms",
        "ms/step",
        "scores of all latents, and the selection of each shard's candidates",
        PHASES,
    ),
    Metric("perf/select_ms", "ms/step", "the selection among the candidates of all shards", PHASES),
    Metric(
        "perf/exchange_ms",
        "ms/step",
        "collectives among consumers, including the wait for the slowest",
        PHASES,
    ),
    Metric(
        "perf/decode_ms",
        "ms/step",
        "reconstruction and its error; in kinds without selection also the codes",
        PHASES,
    ),
    Metric("perf/backward_ms", "ms/step", "gradients of codes and weights", PHASES),
    Metric("perf/step_ms", "ms/step", "projection, clip, Adam, unit rows (phase `step`)", PHASES),
    Metric(
        "perf/wait_ms",
        "ms/step",
        "waiting for what the ranks agreed on in the last step: the device's idle time",
        PHASES,
    ),
    Metric("perf/record_ms", "ms/step", "recording metrics, and the agreement of the ranks", PHASES),
    Metric("perf/other_ms", "ms/step", "the rest of the step", PHASES),
    Metric(
        "perf/dictionary_tflops",
        "TFLOP/s",
        "operations by `config.needs` / time of encode, select, exchange, decode, backward, step; all ranks",
        PHASES,
    ),
    Metric(
        "perf/gemm_share",
        "share",
        "perf/dictionary_tflops / the rate of square matrix products, measured on these devices at the start",
        PHASES,
    ),
    Metric(
        "perf/redone_rows",
        "rows/step",
        "rows that a first selection left uncertain or, in a batch's selection, short: they are scored again",
        SELECTS,
    ),
    Metric(
        "perf/peak_memory_gib",
        "GiB",
        "largest memory that any rank has held so far: of its GPU, or resident on the host",
    ),
    Metric(
        "perf/wait_for_chunks_s",
        "s",
        "since the last row, time that a consumer waited for chunks; largest over consumers",
        PRODUCERS,
    ),
    Metric(
        "perf/wait_for_credit_s",
        "s",
        "since the last row, time that a producer did not compute; mean over producers",
        PRODUCERS,
    ),
    Metric(
        "perf/make_chunks_s",
        "s",
        "since the last row, time that a rank computed or read chunks; largest over ranks",
        "without producers",
    ),
    Metric("host/cpu", "share", "busy cores of all cores, mean over machines", SAMPLED),
    Metric("host/rss_gib", "GiB", "resident memory of all of the run's processes", SAMPLED),
    Metric("host/{node}/cpu", "share", "busy cores of all cores since the last sample", SAMPLED),
    Metric(
        "host/{node}/cpu_stolen",
        "share",
        "share of its busy time that a virtual machine's host gave to others",
        SAMPLED,
    ),
    Metric("host/{node}/memory_gib", "GiB", "memory used on the machine, by all processes", SAMPLED),
    Metric("host/{node}/rss_gib", "GiB", "resident memory of the run's processes on this machine", SAMPLED),
    Metric(
        "host/{node}/sent_mib_per_s", "MiB/s", "sent over all network interfaces but the loopback", SAMPLED
    ),
    Metric(
        "host/{node}/received_mib_per_s",
        "MiB/s",
        "received over all network interfaces but the loopback",
        SAMPLED,
    ),
    Metric("gpu/power_w", "W", "power of all GPUs of the run", GPUS),
    Metric("gpu/energy_j", "J", "energy of all GPUs of the run since it started or resumed", GPUS),
    Metric("gpu/utilisation", "share", "share of time in which a kernel ran, by NVML; mean over GPUs", GPUS),
    Metric("gpu/memory_gib", "GiB", "memory used on the fullest GPU, by all processes", GPUS),
    Metric("gpu/temperature_c", "C", "temperature of the hottest GPU", GPUS),
    Metric(
        "gpu/throttled",
        "GPUs",
        "GPUs slowed down by heat, power brake or hardware; not those at their power cap",
        GPUS,
    ),
    Metric("gpu/xids", "events", "XID errors since the run started or resumed", GPUS),
    Metric("gpu/{gpu}/power_w", "W", "power", GPUS),
    Metric(
        "gpu/{gpu}/energy_j",
        "J",
        "energy since the run started or resumed; power x time if NVML does not count it",
        GPUS,
    ),
    Metric("gpu/{gpu}/utilisation", "share", "share of time in which a kernel ran", GPUS),
    Metric(
        "gpu/{gpu}/memory_utilisation", "share", "share of time in which memory was read or written", GPUS
    ),
    Metric("gpu/{gpu}/memory_gib", "GiB", "memory used, by all processes", GPUS),
    Metric("gpu/{gpu}/temperature_c", "C", "temperature of the chip", GPUS),
    Metric("gpu/{gpu}/sm_mhz", "MHz", "clock of the processors", GPUS),
    Metric("gpu/{gpu}/memory_mhz", "MHz", "clock of the memory", GPUS),
    Metric("gpu/{gpu}/clock_event_reasons", "bits", "NVML's reasons why the clock is what it is", GPUS),
    Metric(
        "gpu/{gpu}/throttled", "0 or 1", "whether one of these reasons is heat, power brake or hardware", GPUS
    ),
    Metric(
        "gpu/{gpu}/ecc_uncorrected", "errors", "uncorrected memory errors since the driver was loaded", GPUS
    ),
    Metric("gpu/{gpu}/ecc_corrected", "errors", "corrected memory errors since the driver was loaded", GPUS),
    Metric("gpu/{gpu}/xids", "events", "XID errors since the run started or resumed", GPUS),
    Metric("gpu/{gpu}/xid", "number", "number of the last XID error", GPUS),
    Metric("gpu/{gpu}/pcie_sent_gib_per_s", "GiB/s", "sent over PCIe, measured by NVML over 20 ms", GPUS),
    Metric(
        "gpu/{gpu}/pcie_received_gib_per_s", "GiB/s", "received over PCIe, measured by NVML over 20 ms", GPUS
    ),
    Metric("gpu/{gpu}/nvlink_sent_gib_per_s", "GiB/s", "sent over all NVLinks since the last sample", GPUS),
    Metric(
        "gpu/{gpu}/nvlink_received_gib_per_s",
        "GiB/s",
        "received over all NVLinks since the last sample",
        GPUS,
    ),
)

TRAINED = "when training has ended"
APART = "with producers"
SUMMARY = (
    Metric("tokens", "activations", "activations trained on", TRAINED),
    Metric("steps", "steps", "training steps", TRAINED),
    Metric(
        "tokens_per_second",
        "activations/s",
        "activations per second since this process began to train",
        TRAINED,
    ),
    Metric("peak_memory_bytes", "bytes", "largest memory that a consumer held", TRAINED),
    Metric("world_size", "processes", "processes of the run", TRAINED),
    Metric("lr", "1", "the decoder's peak learning rate", TRAINED),
    Metric("stream_seconds", "s", "time of waiting for activations, or computing them", TRAINED),
    Metric("dictionary_seconds", "s", "time that the host spent on the dictionary's steps", TRAINED),
    Metric("gemm_tflops", "TFLOP/s", "measured rate of matrix products, all consumers together", TRAINED),
    Metric(
        "gpu_hours",
        "GPU h",
        "GPUs x hours of training, over all starts of the run, without work lost to a kill",
        "on GPUs",
    ),
    Metric("joules", "J", "energy of all GPUs during these hours", "on GPUs, with telemetry"),
    Metric("joules_per_million_tokens", "J", "joules / tokens x 10^6", "on GPUs, with telemetry"),
    Metric("balance.consumers_waited", "1", "share of training in which consumers waited for chunks", APART),
    Metric(
        "balance.producers_waited", "1", "share of training in which producers had no room to send to", APART
    ),
    Metric("balance.chunk_busy_s", "s", "time that a producer computes a chunk", APART),
    Metric("balance.step_busy_s", "s", "time of a step without waiting", APART),
    Metric(
        "balance.producers_per_consumer",
        "1",
        "ratio of producers to consumers at which neither would wait",
        APART,
    ),
)

HEAD = """# Metrics

Generated by `python -m sae_dist.metrics.catalogue`. `metrics.jsonl` and W&B have one row every
`metrics.every` steps; the x-axis is `tokens`. {gpu} is `<node>.<GPU of that node>`, {node} a machine,
numbered by its lowest rank. `ms/step`: mean over steps since the last row and over consumers; phases do not
overlap. The evaluation's numbers are in summary.json and eval.json too, there without `eval/`.
"""


def names(when: str = ALWAYS) -> list[str]:
    """List the names of metrics.jsonl that are present in such rows."""
    return [metric.name for metric in ROW if metric.when == when]


def known(name: str) -> bool:
    """Return whether a row may have this name."""
    return any(re.fullmatch(_pattern(metric.name), name) for metric in (*ROW, *EVAL))


def _pattern(name: str) -> str:
    parts = re.split(r"\{\w+\}", name)
    return "[^/]+".join(re.escape(part) for part in parts)


def markdown() -> str:
    """Write the tables as Markdown, for readers."""
    found = HEAD
    for title, metrics in (
        (METRICS, ROW),
        ("Evaluation", EVAL),
        ("summary.json, besides the evaluation's numbers; in W&B's summary under `summary/`", SUMMARY),
    ):
        found += f"\n## {title}\n\n| name | unit | what it is | when |\n|---|---|---|---|\n"
        for name, unit, meaning, when, *_ in metrics:
            cells = (f"`{name}`", unit, meaning, when)
            found += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return found


if __name__ == "__main__":
    Path(__file__).with_name("README.md").write_text(markdown(), encoding="utf-8")
