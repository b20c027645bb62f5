"""What a consumer rank holds between two steps, in bytes, as arithmetic on its config."""

from dataclasses import dataclass

from sae_dist.core.config import RunConfig

MASTER_BYTES = {"float32": 4, "float64": 8, "bfloat16": 4}
WIRE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
EXTRA_PER_LATENT = {"gated": 3, "jumprelu": 2}
"""Numbers of a latent beside its encoder and decoder rows: biases, thresholds; 1 in the other kinds."""
GROUPS_PER_LANE = 2.0
"""A lane holds its block (one group's worth of rows), the rows that the last group deferred (half a group),
and, from none to a whole one, the group that is filling (half of one, on average over lanes)."""
ID_BYTES = 8


@dataclass(frozen=True)
class ConsumerMemory:
    """Bytes of one consumer rank.

    Letters: F latents of the shard, D and E widths of input and target (equal in an autoencoder), L lanes of
    the rank, R rows of a chunk, C columns of a row (D; of a transcoder D + E).

    weights     F (D + E + biases), in the master dtype, and 8 F for when each latent last fired
    gradients   as many numbers as weights, of the rows that this replica owns; none with row_adam
    moments     twice as many, of the rows that this replica owns; with row_adam once where beta1 = 0, and 8
                bytes for each owned latent. With dp > 1 and adam a copy of the owned rows is counted here too
    lanes       L x 2 groups x block_chunks x R rows, each C numbers in the wire dtype and an id of 8 bytes
    in_flight   with producers, chunks that have arrived ahead: L (2 block_chunks + 1) + in_flight x producers

    A step needs more for a while: half of the gradients, as they are projected, tiles of scores, the batch.
    """

    weights: int
    gradients: int
    moments: int
    lanes: int
    in_flight: int

    @property
    def dictionary(self) -> int:
        """The dictionary and its optimizer."""
        return self.weights + self.gradients + self.moments

    @property
    def rows(self) -> int:
        """Activations that wait."""
        return self.lanes + self.in_flight


def consumer_memory(cfg: RunConfig, columns: int, target: int) -> ConsumerMemory:
    """The bytes of a consumer of a resolved config.

    Args:
        columns: width of a row that flows, D; of a transcoder D + E.
        target: width of what is reconstructed, D or E.
    """
    topology, shuffle, sae, optim = cfg.topology, cfg.shuffle, cfg.sae, cfg.optim
    assert sae.num_latents is not None and shuffle.block_chunks is not None, "filled in by core.resolve"
    latents = sae.num_latents // topology.shard
    source = columns if cfg.target_hook is None else columns - target
    numbers = latents * (source + target + EXTRA_PER_LATENT.get(sae.kind, 1))
    size = MASTER_BYTES[cfg.precision]
    owned = numbers * size // topology.dp
    if optim.kind == "row_adam":
        gradients, moments = 0, (2 if optim.beta1 else 1) * owned + 8 * latents // topology.dp
    else:
        gradients, moments = owned, 2 * owned + (owned if topology.dp > 1 else 0)
    lanes = shuffle.lanes // (topology.shard * topology.dp)
    chunk = shuffle.chunk_rows * (columns * WIRE_BYTES[cfg.precision] + ID_BYTES)
    senders = topology.producers * (cfg.llm.shard_size if cfg.llm.shard == "zero3" else 1)
    ahead = lanes * (2 * shuffle.block_chunks + 1) + topology.in_flight * senders
    return ConsumerMemory(
        weights=numbers * size + 8 * latents,
        gradients=gradients,
        moments=moments,
        lanes=int(lanes * GROUPS_PER_LANE * shuffle.block_chunks * chunk),
        in_flight=ahead * chunk if topology.producers else 0,
    )
