"""Rules of `cluster`, and how many ranks of a run each of its parts starts."""

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from sae_dist.config.rules.sharding import world_size_of
from sae_dist.config.run import RunConfig
from sae_dist.config.sections import ClusterProducerConfig

TIME = re.compile(r"\d+|\d+:\d\d(:\d\d)?|\d+-\d+(:\d\d){0,2}")
MEMORY = re.compile(r"\d+[KMGT]?")
WORD = re.compile(r"[A-Za-z0-9._,+-]+")
WORDS = ("account", "partition", "qos")
OURS = {
    "output": "logs are written to the run folder",
    "error": "logs are written to the run folder",
    "job-name": "it is made of the run's name",
    "ntasks": "the topology decides how many ranks there are",
    "array": "a sweep is one by itself: hydra/launcher=slurm",
    "signal": "use cluster.warn_s",
    "requeue": "use cluster.requeue",
    "no-requeue": "use cluster.requeue",
}
"""Options of sbatch that `cluster.sbatch` may not hold, each with the reason."""


def asks_apart(cfg: RunConfig) -> bool:
    """Tell whether producers ask for other resources than consumers."""
    producer = cfg.cluster.producer
    return any(getattr(producer, item.name) is not None for item in fields(ClusterProducerConfig))


def role_ranks(cfg: RunConfig) -> tuple[int, int]:
    """Return the number of consumers, which come first, and of producers."""
    producers = cfg.topology.producers * cfg.llm.shard_size
    return world_size_of(cfg) - producers, producers


def cluster_problems(cfg: RunConfig) -> Iterator[str]:
    """Yield values that Slurm, or the shell of the job, would reject."""
    cluster, producer = cfg.cluster, cfg.cluster.producer
    for name in WORDS:
        yield from _matches(f"cluster.{name}", getattr(cluster, name), WORD, "a name as Slurm knows it")
    yield from _matches("cluster.producer.partition", producer.partition, WORD, "a name as Slurm knows it")
    yield from _matches("cluster.time", cluster.time, TIME, "minutes, 12:00:00 or 2-00:00:00")
    for key, value in (("cluster.mem", cluster.mem), ("cluster.producer.mem", producer.mem)):
        yield from _matches(key, value, MEMORY, "the memory of a node, such as 200G")
    lists = {
        "cluster.setup": cluster.setup,
        "cluster.sbatch": cluster.sbatch,
        "cluster.srun": cluster.srun,
        "cluster.command": [cluster.command or ""],
        "cluster.producer.sbatch": producer.sbatch or [],
    }
    for key, lines in lists.items():
        yield from _lines(key, lines)


def submit_problems(cfg: RunConfig) -> Iterator[str]:
    """Yield broken rules that concern only runs on a cluster."""
    cluster = cfg.cluster
    if cfg.device == "cuda" and not cluster.gpus_per_task:
        yield "device=cuda needs GPUs: set cluster.gpus_per_task=1, or choose a cluster= that does"
    if asks_apart(cfg) and not cfg.topology.producers:
        yield (
            "cluster.producer asks for the resources of producers, and topology.producers=0; set that, or "
            "leave cluster.producer out"
        )
    consumers, producers = role_ranks(cfg)
    ranks = consumers if asks_apart(cfg) else consumers + producers
    for key, nodes, count in (
        ("cluster.nodes", cluster.nodes, ranks),
        ("cluster.producer.nodes", cluster.producer.nodes, producers),
    ):
        if nodes is not None and count and nodes > count:
            yield f"{key}={nodes} is more than the {count} ranks that would be there; use at most {count}"


def _matches(key: str, value: str | None, pattern: re.Pattern[str], what: str) -> Iterator[str]:
    if value is not None and not pattern.fullmatch(value):
        yield f"{key}={value!r} is not {what}"


def _lines(key: str, lines: list[Any]) -> Iterator[str]:
    for line in map(str, lines):
        if not key.endswith(("sbatch", "srun")):
            continue
        if not line.startswith("-"):
            yield f"{key} has {line!r}, which is no option; write it as --option=value"
        name = line.lstrip("-").split("=")[0].split(" ")[0]
        if key.endswith("sbatch") and name in OURS:
            yield f"{key} has {line!r}, which is not for it: {OURS[name]}"
