"""One rank of a harvest: it runs the frozen LLM over its lanes, and keeps the activations."""

import dataclasses
import time
from pathlib import Path

from tqdm import tqdm

from sae_dist.config.rules.cache import chunks_needed, settled_keys
from sae_dist.config.run import Resolved, flat, load_config
from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.errors import Preempted
from sae_dist.core.place import place
from sae_dist.core.text import print_line
from sae_dist.core.types import LlmFacts, Precision
from sae_dist.distributed import runtime
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.hub import revision
from sae_dist.train.sources import build_source
from sae_dist.transport.cache_manifest import (
    HARVEST,
    MANIFEST,
    Manifest,
    Shard,
    read_manifest,
    write_manifest,
)
from sae_dist.transport.cache_writer import CacheSize, Gathering, LaneWriter

SAID_EVERY_S = 30.0


def harvest_rank(folder: Path, granted: Granted = NOTHING) -> None:
    """Write the shards of lanes v with v mod world = rank; rank 0 writes the manifest once all are there.

    Raises:
        SaeDistError: see `core.errors`.
    """
    cfg = load_config(folder / HARVEST, granted)
    stop, where = runtime.StopRequest(), place()
    device = runtime.start(where, cfg.device, cfg.topology.timeout_s)
    gathering = Gathering(where.rank, where.world, cfg.topology.timeout_s)
    lanes = range(where.rank, cfg.shuffle.lanes, where.world)
    progress = Progress(stop, gathering, len(lanes) * lane_chunks(cfg), cfg.shuffle.chunk_rows)
    try:
        facts, _ = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
        as_kept = dataclasses.replace(cfg, precision=cfg.cache.dtype)
        source = build_source(as_kept, facts, device, witness=where.rank == 0)
        dtype = Precision.of(cfg.cache.dtype).wire
        size = CacheSize(cfg.shuffle.lanes, lane_chunks(cfg), cfg.cache.shard_chunks, dtype)
        known = _known(folder)
        shards: list[Shard] = []
        for lane in lanes:
            shards += LaneWriter(folder, source, lane, size, known=known, tick=progress.tick).write()
        gathering.bring(shards)
        if where.rank == 0:
            write_manifest(folder, _manifest(cfg, facts, gathering.collect(progress.check)))
    except Preempted:
        runtime.finish()
        raise
    runtime.finish()


def lane_chunks(cfg: Resolved) -> int:
    """Return the chunks of each lane: enough for every run of `train_tokens` or less, whatever its batch."""
    lanes, chunk_rows, block_chunks = cfg.shuffle.lanes, cfg.shuffle.chunk_rows, cfg.shuffle.block_chunks
    return chunks_needed(cfg.train_tokens, lanes=lanes, chunk_rows=chunk_rows, block_chunks=block_chunks)


class Progress:
    """The progress of this rank: after each chunk it shows that it lives, and stops if asked to."""

    def __init__(self, stop: runtime.StopRequest, gathering: Gathering, chunks: int, chunk_rows: int):
        self.stop, self.gathering, self.rows = stop, gathering, chunk_rows
        self.chunks, self.kept, self.written = chunks, 0, 0
        self.started = self.said = time.monotonic()

    def tick(self, chunks: int, written: bool) -> None:
        """Count chunks that are on the disk, written now or by an earlier start.

        Raises:
            Preempted: a signal asked to stop.
        """
        if written:
            self.written += chunks
        else:
            self.kept += chunks
        self.gathering.beat()
        now = time.monotonic()
        if self.gathering.rank == 0 and self.written and now - self.said > SAID_EVERY_S:
            print_line(f"  {self.line(now - self.started)}")
            self.said = now
        self.check()

    def line(self, seconds: float) -> str:
        """Say how much there is of all, and how long the rest will take."""
        there, rate = self.kept + self.written, self.written * self.rows / seconds
        left = tqdm.format_interval((self.chunks - there) * self.rows / rate)
        return (
            f"rank 0: {there * self.rows:,} of {self.chunks * self.rows:,} activations, {rate:,.0f}/s, "
            f"ETA {left}"
        )

    def check(self) -> None:
        """Stop if a signal asked to, while nothing is being written.

        Raises:
            Preempted: it did.
        """
        if self.stop.wanted:
            raise Preempted("stopped as asked; shards are kept. Go on: the same command with resume=auto")


def _known(folder: Path) -> dict[str, str]:
    """Return the checksums in an earlier manifest, if the cache had one and has lost shards since."""
    if not (folder / MANIFEST).is_file():
        return {}
    return {shard.name: shard.sha256 for shard in read_manifest(str(folder)).shards}


def _manifest(cfg: Resolved, facts: LlmFacts, shards: list[Shard]) -> Manifest:
    values = flat(cfg)
    return Manifest(
        settings={key: values[key] for key in settled_keys()},
        revision=revision(facts.path, cfg.llm.trust_remote_code),
        facts=facts,
        dtype=cfg.cache.dtype,
        shard_chunks=cfg.cache.shard_chunks,
        chunks_per_lane=lane_chunks(cfg),
        shards=tuple(shards),
    )
