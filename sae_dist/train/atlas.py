"""One rank of the pass that makes an atlas: it runs the model, or it keeps the codes of its own latents.

Letters: as core.types; S the ranks of the shard axis.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.encode import ShardEncoder, rows_of
from sae_dist.atlas.finish import Finishing
from sae_dist.atlas.manifest import VERSION
from sae_dist.atlas.progress import Done
from sae_dist.atlas.text import Plan, Recorded
from sae_dist.atlas.windows import WindowCodes
from sae_dist.config.atlas import HELD_OUT, TRAINING, AtlasConfig, atlas_of, for_atlas, read_asked
from sae_dist.config.grid import single
from sae_dist.config.run import Single, load_config
from sae_dist.config.triton import triton_problem
from sae_dist.config.trust import NOTHING, Granted
from sae_dist.core.errors import Preempted
from sae_dist.core.place import place
from sae_dist.core.progress import reported
from sae_dist.core.run_folder import CONFIG, EXPORT, LOGS
from sae_dist.core.sums import checksum
from sae_dist.core.types import ActivationChunk, ChunkSource, LlmFacts, Precision
from sae_dist.distributed import runtime
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import WEIGHTS, open_exported
from sae_dist.kernels.choose import choose_kernels
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from sae_dist.train.rank import close, joined
from sae_dist.transport.collective import RemoteChunks, produce
from sae_dist.transport.in_step import produce_in_step
from sae_dist.transport.wire import Stream

WINDOW_ROWS = 1 << 18
ROWS_PER_LATENT = 7
"""Windows of small dictionaries are smaller: what a rank holds stays below what it keeps of its latents."""


@dataclass(frozen=True)
class Pass:
    """What a rank of the pass works with; `folder` is the atlas's, `target_hook` the run's."""

    cfg: Single
    target_hook: str | None
    atlas: AtlasConfig
    folder: Path
    sae: ExportedSae
    facts: LlmFacts
    plan: Plan
    topology: Topology
    device: torch.device
    stop: runtime.StopRequest


def atlas_rank(folder: Path, granted: Granted = NOTHING) -> None:
    """Play this rank's part in making the atlas of a folder, and leave.

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
    try:
        windows = Reading(each, chunks).read()
    except Preempted:
        close(chunks)
        raise
    close(chunks)
    consumers = each.topology.consumers
    finishing = Finishing(each.folder, each.plan, each.sae.num_latents, windows, consumers, each.stop)
    settings = Settings(each.atlas.top, each.atlas.bins, each.atlas.each, few=each.atlas.few)
    finishing.index()
    finishing.describe(settings)
    finishing.seal(_facts(each), settings)


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


class Reading:
    """The walk of one consumer through the text: window by window, in step with the others."""

    def __init__(self, each: Pass, chunks: ChunkSource):
        self._pass, topology = each, each.topology
        latents = each.sae.num_latents // topology.num_shards
        self._first_latent = topology.shard.rank * latents
        mine = each.sae.tile(slice(self._first_latent, self._first_latent + latents))
        master = Precision.of(each.cfg.precision).master
        held = mine.to(each.device, master)
        held.W_enc_FD = held.W_enc_FD.contiguous()
        name = "triton" if each.device.type == "cuda" and triton_problem() is None else "torch"
        self._encoder = ShardEncoder(held, topology.shard, choose_kernels(name))
        self._dtype, self._width = master, held.width
        self._done = Done.of(each.folder)
        self._lanes = topology.lanes_of_consumer(topology.index, each.plan.lanes)
        self._open = {lane: chunks.open(lane, self._done.starts.get(lane)) for lane in self._lanes}
        self._starts = {lane: self._done.starts[lane] for lane in self._lanes if lane in self._done.starts}
        for lane in self._starts:
            next(self._open[lane], None)  # it was counted before

    def read(self) -> int:
        """Read all windows that are not done; return how many there are.

        Raises:
            Preempted: a signal asked to stop; windows that are done stay so.
        """
        plan, topology = self._pass.plan, self._pass.topology
        rows = plan.lanes * plan.rows
        left = (plan.windows - self._done.windows) * plan.window
        steps = self._steps()
        for _ in reported(steps, lambda _: rows, left * rows, "tokens read") if topology.leads else steps:
            pass
        return self._done.windows

    def _steps(self) -> Iterator[int]:
        """Read chunk after chunk of all lanes, and yield the number of each."""
        each, plan, topology = self._pass, self._pass.plan, self._pass.topology
        while not self._done.over:
            codes, window = WindowCodes(), self._done.windows
            for index in range(window * plan.window, (window + 1) * plan.window):
                self._check_stop()
                for row_P, latent_P, code_P in self._round(index):
                    codes.add(row_P, latent_P + self._first_latent, code_P)
                yield index
            codes.write(each.folder, window, topology.index)
            told = topology.consumers.gather_json([bool(self._open), list(self._starts.items())])
            over = window + 1 == plan.windows or not any(going for going, _ in told)
            starts = {lane: start for _, part in told for lane, start in part}
            self._done = Done(window + 1, starts, over)
            if topology.leads:
                self._done.write(each.folder)

    def _round(self, index: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield row, latent and code, on the host, of the codes of one chunk of every lane of the replica."""
        topology, plan, shard = self._pass.topology, self._pass.plan, self._pass.topology.shard
        for first in range(0, plan.lanes, topology.num_consumers):
            chunk = self._next(first + topology.index, index)
            there = 0 if chunk is None else plan.rows - chunk.repeated
            count_S = shard.gather_rows(torch.tensor([there], device=self._pass.device))
            if not bool(count_S.any()):
                continue
            x_RD = torch.zeros(plan.rows, self._width, dtype=self._dtype, device=self._pass.device)
            if chunk is not None:
                x_RD[:there] = chunk.rows_RD[:there, : self._width].to(self._pass.device, self._dtype)
            codes = self._encoder.codes(shard.gather_rows(x_RD))
            row_P = rows_of(codes)
            rank_P, within_P = row_P // plan.rows, row_P % plan.rows
            number = index * plan.lanes + first + topology.index - shard.rank
            kept_P = within_P < count_S[rank_P]
            row_P = (number + rank_P) * plan.rows + within_P
            yield row_P[kept_P].cpu(), codes.latent_P[kept_P].cpu(), codes.value_P[kept_P].cpu()

    def _next(self, lane: int, index: int) -> ActivationChunk | None:
        """Return a lane's next chunk; None: it has ended, or there is no such lane."""
        number = index * self._pass.plan.lanes + lane
        if lane not in self._open or number >= self._pass.plan.chunks:
            return None
        chunk = next(self._open[lane], None)
        if chunk is None:
            del self._open[lane]
            return None
        self._starts[lane] = chunk.start
        return chunk

    def _check_stop(self) -> None:
        wanted = torch.tensor([int(self._pass.stop.wanted)], device=self._pass.device)
        if int(self._pass.topology.consumers.max(wanted)):
            raise Preempted(
                "stopped as asked; what was read is kept. Go on: the same command with resume=auto"
            )
