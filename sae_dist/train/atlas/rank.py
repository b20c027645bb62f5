"""One rank of the pass that makes an atlas: it runs the model, or it keeps the codes of its own latents."""

from pathlib import Path
from typing import Any

import torch

from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.finish import Finishing
from sae_dist.atlas.manifest import VERSION
from sae_dist.atlas.text import Plan, Recorded
from sae_dist.config.atlas import HELD_OUT, TRAINING, AtlasConfig, atlas_of, for_atlas, read_asked
from sae_dist.config.grid import single
from sae_dist.config.run import Single, load_config
from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.errors import Preempted
from sae_dist.core.place import place
from sae_dist.core.run_folder import CONFIG, EXPORT, LOGS
from sae_dist.core.sums import checksum
from sae_dist.core.text import print_line
from sae_dist.core.types import ChunkSource, Precision
from sae_dist.distributed import runtime
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.export.saelens import WEIGHTS, open_exported
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from sae_dist.train.atlas.reading import Pass, Reading, Seconds
from sae_dist.train.rank import close, joined
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.in_step import produce_in_step
from sae_dist.transport.wire import Stream

WINDOW_ROWS = 1 << 18
ROWS_PER_LATENT = 7
"""Windows of small dictionaries are smaller: what a rank holds stays below what it keeps of its latents."""


def atlas_rank(folder: Path, granted: Granted = NOTHING) -> None:
    """Run this rank's part in making the atlas of a folder, and leave.

    Raises:
        SaeDistError: see `core.errors`.
    """
    values = read_asked(folder)
    run = single(load_config(folder.parent / CONFIG, granted), folder.parent)
    cfg = for_atlas(run, values)

    def work(device: torch.device, stop: runtime.StopRequest, control: Control) -> None:
        facts = llm_facts(cfg.llm, cfg.hook, None)[0]
        in_step = cfg.llm.shard == "zero3"
        size = cfg.llm.shard_size
        topology = Topology(cfg.topology, place(), device.type, team_size=size, in_step=in_step)
        topology.meet(device)
        sae, atlas = open_exported(folder.parent / EXPORT), atlas_of(values)
        plan = plan_of(cfg, atlas, sae.num_latents)
        each = Pass(cfg, run.target_hook, atlas, folder, sae, facts, plan, topology, device, stop)
        _consume(each) if topology.is_consumer else _produce(each)

    joined(cfg, folder / LOGS, work)


def plan_of(cfg: Single, atlas: AtlasConfig, num_latents: int) -> Plan:
    """Return the order of the pass: it depends on the text and the dictionary, not on the ranks."""
    rows = cfg.shuffle.chunk_rows
    once = atlas.lanes * rows
    window = max(1, min(WINDOW_ROWS, ROWS_PER_LATENT * num_latents) // once)
    return Plan(atlas.lanes, rows, -(-atlas.count // rows), window)


def _source(each: Pass) -> Recorded:
    """Load the LLM, and open the text."""
    cfg, topology = each.cfg, each.topology
    held_out = {HELD_OUT: True, TRAINING: False}.get(each.atlas.text)
    tokens = open_tokens(
        cfg.tokens,
        each.facts,
        lanes=each.plan.lanes,
        seed=cfg.seed,
        rows=each.plan.rows,
        held_out=held_out,
        short=True,
    )
    llm = FrozenLlm.load(
        cfg.llm,
        each.facts,
        device=each.device,
        dtype=getattr(torch, cfg.llm.dtype),
        with_head=False,
        team=None if topology.is_consumer else topology.team,
    )
    source = LlmChunkSource(
        llm,
        tokens,
        rows=each.plan.rows,
        spare=0,
        max_norm_multiple=cfg.tokens.max_norm_multiple,
        wire=Precision.of(cfg.precision).wire,
    )
    return Recorded(source, each.folder, each.plan, topology.is_consumer or topology.is_sender)


def _stream(each: Pass) -> Stream:
    return Stream(
        each.topology,
        lanes=each.plan.lanes,
        rows=each.plan.rows,
        width=each.facts.columns,
        dtype=Precision.of(each.cfg.precision).wire,
        device=each.device,
        timeout_s=each.cfg.topology.timeout_s,
    )


def _produce(each: Pass) -> None:
    source, in_flight = _source(each), each.cfg.topology.in_flight
    work = produce_in_step if each.topology.in_step else produce
    work(_stream(each), source, in_flight)


def _consume(each: Pass) -> None:
    """Keep the codes of this rank's latents on all of the text, then help to make the tables."""
    chunks: ChunkSource
    if each.topology.num_producers:
        mine = each.topology.lanes_of_consumer(each.topology.index, each.plan.lanes)
        chunks = RemoteChunks(_stream(each), lanes=mine, ahead=2, in_flight=each.cfg.topology.in_flight)
    else:
        chunks = _source(each)
    clock = Seconds()
    try:
        windows = Reading(each, chunks, clock).read()
    except Preempted:
        close(chunks)
        raise
    close(chunks)
    clock.lap("reading")
    consumers = each.topology.consumers
    finishing = Finishing(each.folder, each.plan, each.sae.num_latents, windows, consumers, each.stop)
    settings = Settings(each.atlas.top, each.atlas.bins, each.atlas.each, few=each.atlas.few)
    finishing.index()
    finishing.describe(settings)
    finishing.seal(_facts(each), settings)
    clock.lap("tables")
    if each.topology.leads:
        print_line(clock.in_words(bool(each.topology.num_producers)))


def _facts(each: Pass) -> dict[str, Any]:
    """Return what the manifest says of the dictionary and of the text."""
    cfg, sae, text = each.cfg, each.sae, each.atlas.text
    of_run = {HELD_OUT: "held-out text of the run", TRAINING: "text that the run was trained on"}
    return {
        "version": VERSION,
        "kind": sae.trained_as or sae.kind,
        "num_latents": sae.num_latents,
        "k": sae.k,
        "model": cfg.llm.name,
        "hook": cfg.hook,
        "target_hook": each.target_hook,
        "context": cfg.tokens.context,
        "dictionary": checksum(each.folder.parent / EXPORT / WEIGHTS)["sha256"],
        "text": of_run.get(text, text),
        "lens": "not fitted",
        "effects": "not computed",
    }
