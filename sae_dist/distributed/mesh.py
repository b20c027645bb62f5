"""The topology: producers, and consumers in a mesh (dp, shard). All arithmetic on ranks is in this file.

World = groups of C = shard * dp consumers, ranks 0 .. G C - 1, then the producers. Within its group the index
of a consumer = dp_rank * shard + shard_rank. Lanes are dealt out round robin: lane v belongs to consumer v
mod C of every group and, where there are producers, is computed by producer v mod P. So a rank owns exactly
1/C of the rows of every batch. Groups train different dictionaries on the same batches and exchange nothing.

A producer group ("team") holds one LLM together, on consecutive ranks. With tensor parallelism it computes
each chunk together and is one producer, whose first rank sends; with ZeRO-3 each of its ranks is a producer.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from sae_dist.config.sections import TopologyConfig
from sae_dist.core.place import Place
from sae_dist.core.types import Clock, untimed
from sae_dist.distributed.collectives import Axis


class Topology:
    """The groups of ranks, and this rank's place in them. Every rank creates them in the same order.

    Attributes:
        group: number of this consumer's group; index: its place there. Meaningless on producers.
        leads: whether this is the first consumer of its group.
        reads_first: whether this is the first of the ranks that run the LLM, where there is one.
        shard, dp, consumers: the axes (`Axis`) this rank belongs to; absent on producers.
        team: the axis of the producer group this rank belongs to; None on consumers and groups of one.
        checkpoint_group: a second process group of these consumers, for the thread that writes checkpoints.
        clock: what the axes time their exchanges with.
        mesh: DeviceMesh with axes ("shard", "dp") over the consumers, used only to label tensors on the host
            for checkpoints: in the other order of axes, a resharded load permutes rows.
    """

    def __init__(
        self,
        cfg: TopologyConfig,
        where: Place,
        device_type: str,
        *,
        team_size: int = 1,
        in_step: bool = False,
        clock: Clock = untimed,
    ):
        """Create every process group.

        Args:
            team_size: ranks of a producer group, `llm.shard_size`.
            in_step: every rank of a producer group sends its own chunks (ZeRO-3), else the first sends all.
            clock: times the exchanges of consumers.
        """
        self.clock = clock
        self.num_shards, self.num_replicas = cfg.shard, cfg.dp
        self.num_groups, self.num_consumers = cfg.groups, cfg.shard * cfg.dp
        all_consumers = self.num_groups * self.num_consumers
        self.team_size, self.in_step = team_size, in_step
        self.stride = 1 if in_step else team_size
        self.num_producers = cfg.producers * team_size // self.stride
        self.rank, self.world = where.rank, where.world
        assert self.world == all_consumers + cfg.producers * team_size, "checked by config.validate"
        self.is_consumer = self.rank < all_consumers
        self.group, self.index = divmod(self.rank, self.num_consumers)
        self.leads = self.is_consumer and self.index == 0
        self.reads_first = self.rank == (all_consumers if self.num_producers else 0)
        self.producer_index, follows = divmod(self.rank - all_consumers, self.stride)
        self.is_sender = not self.is_consumer and follows == 0

        # A group made without a timeout gets torch's default, not the timeout of the world.
        timeout = timedelta(seconds=cfg.timeout_s)
        for group, ranks in enumerate(torch.arange(all_consumers).view(-1, cfg.dp, cfg.shard)):
            # Equal axes share a group: with NCCL each has buffers of 100 MB and more on the device.
            made: dict[tuple[int, ...], dist.ProcessGroup] = {}
            everyone = _made(made, ranks.flatten().tolist(), timeout)
            shards = [_made(made, row.tolist(), timeout) for row in ranks]
            replicas = [_made(made, column.tolist(), timeout) for column in ranks.t()]
            writers = dist.new_group(ranks.flatten().tolist(), timeout=timeout, backend="gloo")
            mesh = DeviceMesh("cpu", ranks.t().contiguous(), mesh_dim_names=("shard", "dp"))
            if self.is_consumer and group == self.group:
                dp_rank, shard_rank = divmod(self.index, cfg.shard)
                self.consumer_group, self.checkpoint_group, self.mesh = everyone, writers, mesh
                self.consumers = Axis("consumers", everyone, clock)
                self.shard = Axis("shard", shards[dp_rank], clock)
                self.dp = Axis("dp", replicas[shard_rank], clock)
        self.stream_groups = {
            (producer, consumer): dist.new_group([consumer, self.producer_rank(producer)], timeout=timeout)
            for producer in range(self.num_producers)
            for consumer in range(all_consumers)
        }
        self.team = self._team(cfg.producers, timeout) if team_size > 1 else None

    def meet(self, device: torch.device) -> None:
        """Move one number between each producer and each consumer, in one order on all ranks.

        With NCCL the first transfer of a pair makes its communicator, which waits for the other side. So
        none is made in the middle of a run, where a consumer may be busy with another producer's chunk.
        """
        for (producer, consumer), pair in self.stream_groups.items():
            sender = self.producer_rank(producer)
            if self.rank not in (consumer, sender):
                continue
            one = torch.zeros(1, device=device)
            send = self.rank == sender
            work = dist.isend(one, consumer, group=pair) if send else dist.irecv(one, sender, group=pair)
            assert work is not None, "both ranks are in the group"
            work.wait()

    def _team(self, teams: int, timeout: timedelta) -> Axis | None:
        mine = None
        before = self.num_groups * self.num_consumers
        for first in range(before, before + teams * self.team_size, self.team_size):
            ranks = list(range(first, first + self.team_size))
            group = dist.new_group(ranks, timeout=timeout)
            if self.rank in ranks:
                mine = Axis("team", group)
        return mine

    def producer_rank(self, producer: int) -> int:
        """Return the world rank of a producer; of a producer group, the rank that sends."""
        return self.num_groups * self.num_consumers + producer * self.stride

    def consumer_rank(self, lane: int, group: int) -> int:
        """Return the world rank of the consumer of a group that owns a lane."""
        return group * self.num_consumers + lane % self.num_consumers

    def lanes_of_consumer(self, index: int, num_lanes: int) -> list[int]:
        """List the lanes whose rows a consumer draws, by its index in its group."""
        return list(range(index, num_lanes, self.num_consumers))

    def rows_dealt(self, first: int) -> slice:
        """Return which of the rows numbered from `first` on are this consumer's: its index mod C."""
        return slice((self.index - first) % self.num_consumers, None, self.num_consumers)

    def lanes_of_producer(self, producer: int, num_lanes: int) -> list[int]:
        """List the lanes whose chunks a producer computes."""
        return list(range(producer, num_lanes, self.num_producers))

    def describe(self) -> str:
        """Describe the topology in one phrase, for the log."""
        groups = f"{self.num_groups} groups of " if self.num_groups > 1 else ""
        consumers = f"{groups}{self.num_replicas} x {self.num_shards} consumers (dp x shard)"
        if self.team_size > 1:
            teams = self.num_producers * self.stride // self.team_size
            return f"{teams} producer groups of {self.team_size} ranks, {consumers}"
        if self.num_producers:
            return f"{self.num_producers} producers, {consumers}"
        return f"{consumers}, each makes or reads the activations of its own lanes"


def _made(
    made: dict[tuple[int, ...], dist.ProcessGroup], ranks: list[int], timeout: timedelta
) -> dist.ProcessGroup:
    """Return the group of these ranks, made now unless there is one."""
    if tuple(ranks) not in made:
        made[tuple(ranks)] = dist.new_group(ranks, timeout=timeout)
    return made[tuple(ranks)]


def team_mesh(team: Axis, device_type: str) -> DeviceMesh:
    """Return the ranks of a producer group as a mesh of one axis, `tp`."""
    return DeviceMesh.from_group(team.group, device_type, mesh_dim_names=("tp",))
