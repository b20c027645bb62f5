"""Sources of activation chunks, and the link to producers, built from a config."""

from collections.abc import Callable
from functools import partial

import torch

from sae_dist.config.grid import captured
from sae_dist.config.run import Resolved
from sae_dist.core.text import print_line
from sae_dist.core.types import ChunkSource, LlmFacts, Precision
from sae_dist.distributed.collectives import Axis
from sae_dist.llm.capture import LlmChunkSource, spare_rows
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from sae_dist.train.state import Rank
from sae_dist.transport.ahead import Ahead
from sae_dist.transport.cache import CachedChunkSource
from sae_dist.transport.cache_manifest import read_manifest
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.file import FileChunkSource, open_array
from sae_dist.transport.ground_truth import GroundTruth
from sae_dist.transport.in_step import produce_in_step
from sae_dist.transport.synthetic import SyntheticChunkSource
from sae_dist.transport.wire import Stream


def build_facts(cfg: Resolved) -> LlmFacts | None:
    """Read what is known of the LLM before its weights are loaded; None where there is no LLM."""
    if cfg.reads_cache:
        return read_manifest(cfg.activations.source_path).facts
    if not cfg.runs_llm:
        return None
    first, more = captured(cfg)
    return llm_facts(cfg.llm, *first, more)[0]


def build_source(
    cfg: Resolved,
    facts: LlmFacts | None,
    device: torch.device,
    team: Axis | None = None,
    *,
    witness: bool = False,
) -> ChunkSource:
    """Open the source of activation chunks: tokens and a frozen LLM, a cache, a file, or true features.

    Args:
        facts: of the LLM; None if there is none.
        team: the ranks that hold the LLM together with this one; None if this rank holds it alone.
        witness: compare the LLM's rows with those of the untouched model, and say so.
    """
    wire = Precision.of(cfg.precision).wire
    if cfg.is_synthetic:
        return SyntheticChunkSource(
            GroundTruth.of(cfg.activations, cfg.seed),
            lanes=cfg.shuffle.lanes,
            rows=cfg.shuffle.chunk_rows,
            seed=cfg.seed,
            held_out=False,
            dtype=wire,
        )
    if cfg.reads_cache:
        path = cfg.activations.source_path
        return CachedChunkSource(path, read_manifest(path), dtype=wire)
    if facts is None:
        array = open_array(cfg.activations.source_path, cfg.activations.key)
        return FileChunkSource(
            array,
            lanes=cfg.shuffle.lanes,
            rows=cfg.shuffle.chunk_rows,
            seed=cfg.seed,
            held_out=False,
            dtype=wire,
            max_norm_multiple=cfg.tokens.max_norm_multiple,
        )
    return _build_reader(cfg, facts, device, team, witness)


def _build_reader(
    cfg: Resolved, facts: LlmFacts, device: torch.device, team: Axis | None, witness: bool
) -> LlmChunkSource:
    """Load the LLM, and open the tokens that it reads."""
    spare = spare_rows(cfg.shuffle.chunk_rows, cfg.tokens)
    tokens = open_tokens(
        cfg.tokens,
        facts,
        lanes=cfg.shuffle.lanes,
        seed=cfg.seed,
        rows=cfg.shuffle.chunk_rows + spare,
        held_out=False,
    )
    dtype = getattr(torch, cfg.llm.dtype)
    llm = FrozenLlm.load(
        cfg.llm, facts, device=device, dtype=dtype, with_head=False, team=team, witness=witness
    )
    if witness:
        print_line(f"{cfg.llm.name}: {llm.proof}")
    return LlmChunkSource(
        llm,
        tokens,
        rows=cfg.shuffle.chunk_rows,
        spare=spare,
        max_norm_multiple=cfg.tokens.max_norm_multiple,
        wire=Precision.of(cfg.precision).wire,
    )


def build_stream(rank: Rank) -> Stream:
    """Open the link between producers and consumers."""
    cfg = rank.cfg
    assert rank.facts is not None, "checked by config.validate: producers run an LLM"
    return Stream(
        rank.topology,
        lanes=cfg.shuffle.lanes,
        rows=cfg.shuffle.chunk_rows,
        width=rank.facts.columns,
        dtype=Precision.of(cfg.precision).wire,
        device=rank.device,
        timeout_s=cfg.topology.timeout_s,
    )


def build_chunks(rank: Rank) -> ChunkSource:
    """Open a consumer's source of chunks: its own, or the producers."""
    cfg, topology = rank.cfg, rank.topology
    if topology.num_producers == 0:
        source = build_source(cfg, rank.facts, rank.device, witness=topology.reads_first)
        return Ahead(source, rank.device) if rank.device.type == "cuda" and not cfg.runs_llm else source
    return RemoteChunks(
        build_stream(rank),
        lanes=topology.lanes_of_consumer(topology.index, cfg.shuffle.lanes),
        ahead=2 * cfg.shuffle.block_chunks + 1,
        in_flight=cfg.topology.in_flight,
    )


def build_producer(rank: Rank) -> Callable[[], int]:
    """Prepare a producer's whole life: alone, or in a group of ranks that holds the LLM together."""
    topology = rank.topology
    source = build_source(rank.cfg, rank.facts, rank.device, topology.team, witness=topology.reads_first)
    stream, in_flight = build_stream(rank), rank.cfg.topology.in_flight
    if not topology.in_step:
        return partial(produce, stream, source, in_flight)
    assert isinstance(source, LlmChunkSource)
    return partial(produce_in_step, stream, source, in_flight)
