"""One rank of the pass that makes an atlas: it runs the model, or it keeps the codes of its own latents."""

from pathlib import Path
from typing import Any

import torch

from sae_dist.atlas.describe.near import why_not as why_no_near
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.finish import Finishing
from sae_dist.atlas.manifest import VERSION
from sae_dist.atlas.memory import codes_at_once, window_rows
from sae_dist.atlas.text import Plan
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
from sae_dist.llm.facts import llm_facts
from sae_dist.train.atlas.model import await_head, head_of, look_at_head, open_source
from sae_dist.train.atlas.reading import Pass, Reading, Seconds
from sae_dist.train.rank import close, joined
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.in_step import produce_in_step
from sae_dist.transport.wire import Stream

"""Windows of small dictionaries are smaller: what a rank holds stays below what it keeps of its latents."""


def atlas_rank(folder: Path, granted: Granted = NOTHING) -> None:
    """Run this rank's part in making the atlas of a folder, and leave.

    Raises:
        SaeDistError: see `core.errors`.
    """
    values = read_asked(folder)
    run = single(load_config(folder.parent / CONFIG, granted), folder.parent)
    cfg = for_atlas(run, values)

    def play(device: torch.device, stop: runtime.StopRequest, control: Control) -> None:
        facts = llm_facts(cfg.llm, cfg.hook, None)[0]
        in_step = cfg.llm.shard == "zero3"
        size = cfg.llm.shard_size
        topology = Topology(cfg.topology, place(), device.type, team_size=size, in_step=in_step)
        topology.meet(device)
        sae, atlas = open_exported(folder.parent / EXPORT), atlas_of(values)
        plan = plan_of(cfg, atlas, sae.num_latents, sae.k)
        each = Pass(cfg, run.target_hook, atlas, folder, sae, facts, plan, topology, device, stop)
        work = _consume if topology.is_consumer else _produce
        work(each, control)

    joined(cfg, folder / LOGS, play)


def settings_of(atlas: AtlasConfig) -> Settings:
    """Return the lengths of the lists."""
    return Settings(atlas.top, atlas.bins, atlas.each, few=atlas.few)


def plan_of(cfg: Single, atlas: AtlasConfig, num_latents: int, k: int | None) -> Plan:
    """Return the order of the pass: it depends on the text and the dictionary, not on the ranks."""
    rows = cfg.shuffle.chunk_rows
    once = atlas.lanes * rows
    window = max(1, window_rows(num_latents, k, settings_of(atlas)) // once)
    return Plan(atlas.lanes, rows, -(-atlas.count // rows), window)


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


def _produce(each: Pass, control: Control) -> None:
    """Run the model over this producer's lanes; then look at its head."""
    topology = each.topology
    source, in_flight = open_source(each), each.cfg.topology.in_flight
    work = produce_in_step if topology.in_step else produce
    work(_stream(each), source, in_flight)
    del source
    if topology.is_sender:
        look_at_head(each, topology.producer_index, topology.num_producers, control)


def _consume(each: Pass, control: Control) -> None:
    """Keep the codes of this rank's latents on all of the text, then help to make the tables."""
    topology, clock = each.topology, Seconds()
    windows = _read(each, clock)
    clock.lap("reading")
    consumers, num_latents = topology.consumers, each.sae.num_latents
    settings = settings_of(each.atlas)
    at_once = codes_at_once(num_latents, settings)
    finishing = Finishing(
        each.folder, each.plan, num_latents, windows, at_once, consumers, control, each.stop
    )
    finishing.index()
    lookers = topology.num_producers or consumers.size
    if not topology.num_producers:
        look_at_head(each, topology.index, lookers, control)
    await_head(lookers, each.stop, control)
    head, said = head_of(each, lookers)
    said["near"] = _why_no_near(each)
    finishing.describe(settings, each.sae.W_dec_FE, head, each.device, said["near"] is None)
    finishing.seal(_facts(each) | said, settings)
    clock.lap("tables")
    if topology.leads:
        print_line(clock.in_words(bool(topology.num_producers)))


def _read(each: Pass, clock: Seconds) -> int:
    """Read the text; return how many windows there are."""
    chunks: ChunkSource
    if each.topology.num_producers:
        mine = each.topology.lanes_of_consumer(each.topology.index, each.plan.lanes)
        chunks = RemoteChunks(_stream(each), lanes=mine, ahead=2, in_flight=each.cfg.topology.in_flight)
    else:
        chunks = open_source(each)
    try:
        windows = Reading(each, chunks, clock).read()
    except Preempted:
        close(chunks)
        raise
    close(chunks)
    return windows


def _why_no_near(each: Pass) -> str | None:
    """Return why nearest decoder rows are left out; None: they are not."""
    if each.atlas.near is None:
        return why_no_near(each.sae.num_latents, each.sae.W_dec_FE.shape[1], each.device)
    return None if each.atlas.near else "atlas.near=false"


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
    }
