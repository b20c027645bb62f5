"""The list of every number that a run writes: name, unit, meaning, and when it is present.

A new metric is one `Metric` in the table of its group. No number is computed here: those of training come
from a dictionary's loss (`parts`) and `train/meter.py`, those of a trained dictionary from
`evaluation/quality`, those of machines from `nvml.py` and `telemetry.py`.

`python -m sae_dist.metrics.catalogue` writes README.md next to this file; tests compare that file with this
table, and the rows of real runs too.
"""

import re
from pathlib import Path
from typing import NamedTuple

from sae_dist.core.run_folder import METRICS

ALWAYS = "always"
PRODUCERS = "with producers"
PHASES = "`device=cpu` always; on a GPU once the device has passed the first step"
SAMPLED = "with `metrics.telemetry_s`, in rows that follow a new sample"
GPUS = "as host/, on GPUs that support it"
EVALUATED = "W&B, when the run has been evaluated"
IN_TRAINING = "with `eval.every`; W&B also when the run has been evaluated"


class Metric(NamedTuple):
    """A number by its name. {gpu} is `<node>.<GPU of that node>`, {node} a machine, {plot} a file's name."""

    name: str
    unit: str
    meaning: str
    when: str = ALWAYS


ROW = (
    Metric("step", "steps", "steps made so far"),
    Metric("tokens", "activations", "activations trained on so far, over all replicas: the x-axis"),
    Metric(
        "loss/total", "1", "what is minimised: squared error / variance + penalty + AuxK; mean over steps"
    ),
    Metric(
        "loss/fvu",
        "1",
        "sum |x - x^|^2 / sum |x - m|^2 over the row's steps, m the first batch's mean; scaled activations",
    ),
    Metric(
        "loss/aux", "1", "AuxK: sum |e - e^|^2 / sum |e|^2, e^ from dead latents; mean over steps, 0 without"
    ),
    Metric("loss/sparsity", "1", "the penalty with its coefficient, mean over steps; 0 in kinds without"),
    Metric("sparsity/l0", "codes", "codes above zero per activation"),
    Metric("latents/dead_fraction", "share", "latents that have not fired for `sae.dead_after` tokens"),
    Metric("optim/lr", "1", "the decoder's learning rate of the last step"),
    Metric("optim/grad_norm", "1", "global norm of the gradient before clipping, last step"),
    Metric(
        "stream/batch_hash",
        "1",
        "sum of a hash of (row, token id): equal for equal data, whatever the topology",
    ),
    Metric("stream/excluded_rows", "activations", "left out for their norm since the run began, all ranks"),
    Metric(
        "stream/repeated_rows", "activations", "that stood in twice for those left out, since the run began"
    ),
    Metric("perf/tokens_per_second", "activations/s", "since the last row, by the wall clock"),
    Metric("perf/wall_ms", "ms", "wall time per step since the last row; the phases below are parts of it"),
    Metric(
        "perf/receive_ms",
        "ms/step",
        "getting the batch: waiting for chunks, or the LLM; shuffle, scaling",
        PHASES,
    ),
    Metric("perf/encode_ms", "ms/step", "scores of all latents, and each shard's candidates", PHASES),
    Metric("perf/select_ms", "ms/step", "which candidates win over all shards", PHASES),
    Metric(
        "perf/exchange_ms", "ms/step", "collectives among consumers, with the wait for the slowest", PHASES
    ),
    Metric(
        "perf/decode_ms",
        "ms/step",
        "reconstruction and its error; in kinds without selection the codes too",
        PHASES,
    ),
    Metric("perf/backward_ms", "ms/step", "gradients of codes and weights", PHASES),
    Metric("perf/step_ms", "ms/step", "projection, clip, Adam, unit rows (phase `step`)", PHASES),
    Metric(
        "perf/wait_ms", "ms/step", "for what the ranks agreed on one step ago: the device's idle time", PHASES
    ),
    Metric("perf/record_ms", "ms/step", "metrics and the agreement: what watching costs", PHASES),
    Metric("perf/other_ms", "ms/step", "the rest of the step", PHASES),
    Metric(
        "perf/dictionary_tflops",
        "TFLOP/s",
        "operations of `config.needs` / time of encode, select, exchange, decode, backward, step, all ranks",
        PHASES,
    ),
    Metric(
        "perf/gemm_share",
        "share",
        "perf/dictionary_tflops / the rate at which these devices multiplied square matrices before training",
        PHASES,
    ),
    Metric(
        "perf/peak_memory_gib", "GiB", "most memory a rank ever held: of its GPU, or resident on the host"
    ),
    Metric(
        "perf/wait_for_chunks_s",
        "s",
        "since the last row, waited by the consumer that waited longest",
        PRODUCERS,
    ),
    Metric(
        "perf/wait_for_credit_s",
        "s",
        "since the last row, in which producers did not compute; mean",
        PRODUCERS,
    ),
    Metric(
        "perf/make_chunks_s",
        "s",
        "since the last row, computing or reading chunks; most of a rank",
        "no producers",
    ),
    Metric("host/cpu", "share", "busy cores of all cores, mean over machines", SAMPLED),
    Metric("host/rss_gib", "GiB", "resident memory of all of the run's processes", SAMPLED),
    Metric("host/{node}/cpu", "share", "busy cores of all cores since the last sample", SAMPLED),
    Metric(
        "host/{node}/cpu_stolen",
        "share",
        "of its busy time, what a virtual machine's host gave to others",
        SAMPLED,
    ),
    Metric("host/{node}/memory_gib", "GiB", "memory used on the machine, by anyone", SAMPLED),
    Metric("host/{node}/rss_gib", "GiB", "resident memory of the run's processes there", SAMPLED),
    Metric("host/{node}/sent_mib_per_s", "MiB/s", "over all network interfaces but the loopback", SAMPLED),
    Metric(
        "host/{node}/received_mib_per_s", "MiB/s", "over all network interfaces but the loopback", SAMPLED
    ),
    Metric("gpu/power_w", "W", "power of all GPUs of the run", GPUS),
    Metric("gpu/energy_j", "J", "energy of all GPUs of the run since it started or went on", GPUS),
    Metric("gpu/utilisation", "share", "time in which a kernel ran, by NVML; mean over GPUs", GPUS),
    Metric("gpu/memory_gib", "GiB", "memory used, by anyone; the fullest GPU", GPUS),
    Metric("gpu/temperature_c", "C", "the hottest GPU", GPUS),
    Metric(
        "gpu/throttled", "GPUs", "slowed down by heat, power brake or hardware; not by the power cap", GPUS
    ),
    Metric("gpu/xids", "events", "XID errors since the run started or went on", GPUS),
    Metric("gpu/{gpu}/power_w", "W", "power", GPUS),
    Metric(
        "gpu/{gpu}/energy_j",
        "J",
        "since the run started or went on; power x time where not counted by NVML",
        GPUS,
    ),
    Metric("gpu/{gpu}/utilisation", "share", "time in which a kernel ran", GPUS),
    Metric("gpu/{gpu}/memory_utilisation", "share", "time in which memory was read or written", GPUS),
    Metric("gpu/{gpu}/memory_gib", "GiB", "memory used, by anyone", GPUS),
    Metric("gpu/{gpu}/temperature_c", "C", "of the chip", GPUS),
    Metric("gpu/{gpu}/sm_mhz", "MHz", "clock of the processors", GPUS),
    Metric("gpu/{gpu}/memory_mhz", "MHz", "clock of the memory", GPUS),
    Metric("gpu/{gpu}/clock_event_reasons", "bits", "NVML's reasons why the clock is what it is", GPUS),
    Metric("gpu/{gpu}/throttled", "0 or 1", "whether one of them is heat, power brake or hardware", GPUS),
    Metric("gpu/{gpu}/ecc_uncorrected", "errors", "of the memory since the driver was loaded", GPUS),
    Metric("gpu/{gpu}/ecc_corrected", "errors", "of the memory since the driver was loaded", GPUS),
    Metric("gpu/{gpu}/xids", "events", "XID errors since the run started or went on", GPUS),
    Metric("gpu/{gpu}/xid", "number", "the last of them", GPUS),
    Metric("gpu/{gpu}/pcie_sent_gib_per_s", "GiB/s", "over PCIe, NVML's measure of 20 ms", GPUS),
    Metric("gpu/{gpu}/pcie_received_gib_per_s", "GiB/s", "over PCIe, NVML's measure of 20 ms", GPUS),
    Metric("gpu/{gpu}/nvlink_sent_gib_per_s", "GiB/s", "over all NVLinks since the last sample", GPUS),
    Metric("gpu/{gpu}/nvlink_received_gib_per_s", "GiB/s", "over all NVLinks since the last sample", GPUS),
)

EVAL = (
    Metric("eval/fvu", "1", "sum |x - x^|^2 / sum |x - m|^2, held out, raw space, m their mean", IN_TRAINING),
    Metric("eval/explained_variance", "1", "1 - that ratio per dimension, mean over dimensions", IN_TRAINING),
    Metric("eval/l0", "codes", "codes above zero per activation", IN_TRAINING),
    Metric("eval/l2_ratio", "1", "mean of |x^| / |x|", IN_TRAINING),
    Metric("eval/relative_bias", "1", "sum |x^|^2 / sum x.x^", IN_TRAINING),
    Metric("eval/silent_fraction", "share", "latents that fire on none of these activations", IN_TRAINING),
    Metric("eval/dense_fraction_1", "share", "latents that fire on more than 1 % of them", IN_TRAINING),
    Metric("eval/dense_fraction_10", "share", "latents that fire on more than 10 % of them", IN_TRAINING),
    Metric("eval/ce_clean", "nats", "cross-entropy of the LLM as it is", IN_TRAINING),
    Metric("eval/ce_sae", "nats", "with the reconstruction spliced in", IN_TRAINING),
    Metric(
        "eval/ce_recovered", "share", "(ce_mean_ablated - ce_sae) / (ce_mean_ablated - ce_clean)", IN_TRAINING
    ),
    Metric("eval/kl", "nats", "KL of the next-token distribution, clean to spliced", IN_TRAINING),
    Metric("eval/ce_mean_ablated", "nats", "with the mean activation spliced in", EVALUATED),
    Metric("eval/ce_zero_ablated", "nats", "with zero spliced in", EVALUATED),
    Metric("eval/ce_recovered_zero", "share", "as ce_recovered, against zero", EVALUATED),
    Metric("eval/kl_mean_ablated", "nats", "as kl, with the mean spliced in", EVALUATED),
    Metric("eval/ce_tokens", "tokens", "that the cross-entropies are of", EVALUATED),
    Metric("eval/cosine", "1", "mean cosine of activation and reconstruction", EVALUATED),
    Metric(
        "eval/dead_fraction",
        "share",
        "latents silent on all of at least 500k held-out activations",
        EVALUATED,
    ),
    Metric("eval/dead_tokens", "activations", "that dead latents were looked for on", EVALUATED),
    Metric("eval/fvu_pca", "1", "of PCA with k components, fitted on these very activations", EVALUATED),
    Metric("eval/fvu_linear", "1", "of the best linear map, of a transcoder", EVALUATED),
    Metric("eval/fvu_untrained", "1", "of the dictionary before training", EVALUATED),
    Metric("eval/fvu_without_high_norm", "1", "without tokens 3 times as long as the median", EVALUATED),
    Metric("eval/high_norm_share", "share", "how many are longer", EVALUATED),
    Metric("eval/fvu_second_corpus", "1", "on `eval.corpus`", EVALUATED),
    Metric(
        "eval/embedding_cosine", "1", "of an encoder's mean-pooled embedding, clean and spliced", EVALUATED
    ),
    Metric(
        "eval/matching_score", "1", "mean cosine of true features and decoder rows, one to one", EVALUATED
    ),
    Metric("eval/matched_share", "share", "true features above 0.9 of it", EVALUATED),
    Metric("eval/mmcs", "1", "mean over true features of the nearest row's cosine", EVALUATED),
    Metric("eval/mmcs_latents", "1", "mean over rows of the nearest feature's cosine", EVALUATED),
    Metric("eval/firing_precision", "share", "of codes whose feature fires too", EVALUATED),
    Metric("eval/firing_recall", "share", "of features that fire, those whose latent does", EVALUATED),
    Metric("eval/firing_f1", "share", "of both", EVALUATED),
    Metric("eval/true_l0", "features", "that fire per row of synthetic activations", EVALUATED),
    Metric("eval/eval_tokens", "activations", "held-out activations", EVALUATED),
    Metric("eval/eval_excluded", "activations", "left out of them for their norm", EVALUATED),
    Metric("eval/eval_seconds", "s", "that the evaluation took", EVALUATED),
    Metric(
        "eval/density", "histogram", "latents by log10 of the share of activations they fire on", EVALUATED
    ),
    Metric("eval/table", "table", "the numbers above", EVALUATED),
    Metric("plots/{plot}", "picture", "each plots/*.png", EVALUATED),
)

TRAINED = "when training has ended"
APART = "with producers"
SUMMARY = (
    Metric("tokens", "activations", "trained on", TRAINED),
    Metric("steps", "steps", "made", TRAINED),
    Metric("tokens_per_second", "activations/s", "since this process began to train", TRAINED),
    Metric("peak_memory_bytes", "bytes", "most memory a consumer held", TRAINED),
    Metric("world_size", "processes", "of the run", TRAINED),
    Metric("lr", "1", "the decoder's peak learning rate", TRAINED),
    Metric("stream_seconds", "s", "waiting for activations, or computing them", TRAINED),
    Metric("dictionary_seconds", "s", "the host spent on the dictionary's steps", TRAINED),
    Metric("gemm_tflops", "TFLOP/s", "measured rate of matrix products, all consumers", TRAINED),
    Metric(
        "gpu_hours",
        "GPU h",
        "GPUs x hours of training, over all starts of the run, less what a kill lost",
        "on GPUs",
    ),
    Metric("joules", "J", "energy of all GPUs meanwhile", "on GPUs, with telemetry"),
    Metric("joules_per_million_tokens", "J", "joules / tokens x 10^6", "on GPUs, with telemetry"),
    Metric("balance.consumers_waited", "1", "share of training in which consumers waited for chunks", APART),
    Metric("balance.producers_waited", "1", "share in which producers had no room to send to", APART),
    Metric("balance.chunk_busy_s", "s", "that a producer computes a chunk", APART),
    Metric("balance.step_busy_s", "s", "of a step without waiting", APART),
    Metric("balance.producers_per_consumer", "1", "at which neither would wait", APART),
)

HEAD = """# Metrics

Made by `python -m sae_dist.metrics.catalogue`. `metrics.jsonl` and W&B have one row every `metrics.every`
steps; the x-axis is `tokens`. {gpu} is `<node>.<GPU of that node>`, {node} a machine, numbered by its lowest
rank. `ms/step`: mean over steps since the last row and over consumers; phases do not overlap.
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
        ("summary.json, besides the evaluation's numbers; W&B's summary has them under `summary/`", SUMMARY),
    ):
        found += f"\n## {title}\n\n| name | unit | what it is | when |\n|---|---|---|---|\n"
        for name, unit, meaning, when in metrics:
            cells = (f"`{name}`", unit, meaning, when)
            found += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    return found


if __name__ == "__main__":
    Path(__file__).with_name("README.md").write_text(markdown(), encoding="utf-8")
