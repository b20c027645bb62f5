"""Topology: producers, and consumers in a mesh (dp, shard). All rank arithmetic of the house is here.

World = shard * dp consumers, ranks 0 .. C-1, then the producers. Consumer index = dp_rank * shard +
shard_rank. Lanes are dealt out round robin: lane v belongs to consumer v mod C and, where there are
producers, is computed by producer v mod P. So a rank owns exactly 1/C of the rows of every batch.
"""

from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from sae_dist.core.config import TopologyConfig
from sae_dist.dist.collectives import Axis
from sae_dist.dist.runtime import Place


class Topology:
    """Named groups of ranks. Built by every rank of the world, in the same order.

    Attributes:
        shard, dp, consumers: the axes (`Axis`) this rank belongs to; absent on producers.
        mesh: DeviceMesh with axes ("shard", "dp") over the consumers, only to label tensors for
            checkpoints: labelled the other way round, a resharded load permutes rows.
    """

    def __init__(self, cfg: TopologyConfig, where: Place, device_type: str):
        self.num_shards, self.num_replicas, self.num_producers = cfg.shard, cfg.dp, cfg.producers
        self.num_consumers = cfg.shard * cfg.dp
        self.rank, self.world = where.rank, where.world
        assert self.world == self.num_consumers + self.num_producers, "checked by core.validate"
        self.is_consumer = self.rank < self.num_consumers
        self.producer_index = self.rank - self.num_consumers

        # A group made without a timeout takes torch's default, not that of the world.
        timeout = timedelta(seconds=cfg.timeout_s)
        ranks = torch.arange(self.num_consumers).view(cfg.dp, cfg.shard)
        self.consumer_group = dist.new_group(list(range(self.num_consumers)), timeout=timeout)
        shard_groups = [dist.new_group(row.tolist(), timeout=timeout) for row in ranks]
        dp_groups = [dist.new_group(column.tolist(), timeout=timeout) for column in ranks.t()]
        self.mesh = DeviceMesh(device_type, ranks.t().contiguous(), mesh_dim_names=("shard", "dp"))
        self.stream_groups = {
            (producer, consumer): dist.new_group([consumer, self.producer_rank(producer)], timeout=timeout)
            for producer in range(cfg.producers)
            for consumer in range(self.num_consumers)
        }
        if self.is_consumer:
            self.consumers = Axis("consumers", self.consumer_group)
            dp_rank, shard_rank = divmod(self.rank, cfg.shard)
            self.shard = Axis("shard", shard_groups[dp_rank])
            self.dp = Axis("dp", dp_groups[shard_rank])

    def producer_rank(self, producer: int) -> int:
        """World rank of a producer."""
        return self.num_consumers + producer

    def lanes_of_consumer(self, consumer: int, num_lanes: int) -> list[int]:
        """Lanes whose rows a consumer draws."""
        return list(range(consumer, num_lanes, self.num_consumers))

    def lanes_of_producer(self, producer: int, num_lanes: int) -> list[int]:
        """Lanes whose chunks a producer computes."""
        return list(range(producer, num_lanes, self.num_producers))

    def describe(self) -> str:
        """One phrase for the log."""
        consumers = f"{self.num_replicas} x {self.num_shards} consumers (dp x shard)"
        if self.num_producers:
            return f"{self.num_producers} producers, {consumers}"
        return f"{consumers}, each makes or reads the activations of its own lanes"
