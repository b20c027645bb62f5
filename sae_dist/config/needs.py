"""Arithmetic on a config: the bytes and the floating-point operations that a run needs.

It counts the bytes of a consumer between two steps, finds changes that would make these fit a given memory,
and counts the operations of a step.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sae_dist.config.kinds import KINDS, SELECTED
from sae_dist.config.run import Resolved, Single

MASTER_BYTES = {"float32": 4, "float64": 8, "bfloat16": 4}
WIRE_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2}
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
        """The dictionary with its optimizer."""
        return self.weights + self.gradients + self.moments

    @property
    def rows(self) -> int:
        """The activations that wait to be trained on."""
        return self.lanes + self.in_flight


def consumer_memory(cfg: Single, columns: int, target: int) -> ConsumerMemory:
    """Return the bytes of a consumer that trains one dictionary.

    Args:
        columns: width of a row that flows, D; of a transcoder D + E.
        target: width of what is reconstructed, D or E.
    """
    topology, shuffle, sae, optim = cfg.topology, cfg.shuffle, cfg.sae, cfg.optim
    latents = sae.num_latents // topology.shard
    source = columns if cfg.target_hook is None else columns - target
    numbers = latents * (source + target + KINDS[sae.kind].vectors)
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


USABLE = 0.8
"""The usable share of the memory: a step needs more for a while."""
MOST_SHARDS = 1024


def held_bytes(members: Sequence[Single], columns: int, target: int) -> int:
    """Return the bytes of a consumer between two steps.

    It holds every dictionary of a grid, and the activations that wait once for each place in the LLM.

    Args:
        columns, target: as in `consumer_memory`, of the widest dictionary.
    """
    waiting = {
        (member.hook, member.target_hook): consumer_memory(member, columns, target).rows for member in members
    }
    return dictionary_bytes(members, columns, target) + sum(waiting.values())


def dictionary_bytes(members: Sequence[Single], columns: int, target: int) -> int:
    """Return the bytes of a consumer's dictionaries and their optimizers; see `held_bytes`."""
    cfg, each = members[0], [consumer_memory(member, columns, target) for member in members]
    dictionaries = sum(one.dictionary for one in each)
    if cfg.optim.kind == "offload" and cfg.device != "cpu":
        dictionaries -= sum(one.moments for one in each)
    return dictionaries


def what_would_fit(
    cfg: Resolved, members: Sequence[Single], columns: int, target: int, room: int
) -> list[str]:
    """Return overrides, each of which alone brings a consumer below a usable share of `room` bytes.

    Args:
        members: the dictionaries of `cfg`.
    """
    found = {}
    for key, value, changed in _changes(cfg, members):
        if key not in found and held_bytes(changed, columns, target) <= USABLE * room:
            found[key] = f"{key}={value}"
    return list(found.values())


def _changes(cfg: Resolved, members: Sequence[Single]) -> Iterator[tuple[str, object, Sequence[Single]]]:
    """Yield key, value and dictionaries of smaller runs, of each kind the largest first."""

    def changed(section: str, name: str, value: object) -> Sequence[Single]:
        found = copy.deepcopy(members)
        for member in found:
            setattr(getattr(member, section), name, value)
        return found

    shard = 2 * cfg.topology.shard
    # On a CPU more ranks would share the same memory.
    while shard <= MOST_SHARDS and cfg.device != "cpu":
        ranks = shard * cfg.topology.dp
        latents = [member.sae.num_latents for member in members]
        if not any(each % ranks for each in (*latents, cfg.batch, cfg.shuffle.lanes)):
            yield "topology.shard", shard, changed("topology", "shard", shard)
        shard *= 2
    if cfg.optim.kind == "adam":
        for kind in ("row_adam", "offload"):
            possible = cfg.sae.kind in SELECTED if kind == "row_adam" else cfg.device != "cpu"
            if possible and cfg.precision != "float64":
                yield "optim", kind, changed("optim", "kind", kind)
    widths = {member.sae.num_latents for member in members}
    if cfg.grid.num_latents is None and cfg.grid.hook_num_latents is None and len(widths) == 1:
        step, most_k = cfg.topology.shard * cfg.topology.dp, max(member.sae.k for member in members)
        fewer = widths.pop()
        while (fewer := fewer // 2 // step * step) >= max(step, most_k):
            yield "sae.num_latents", fewer, changed("sae", "num_latents", fewer)


SPLICED_COST = 7
"""Trained tokens that take as long as one token of the cross-entropies: four forwards of the whole model. In
the default run the quotient was 7.3."""


def evaluation_tokens(cfg: Resolved) -> int:
    """Return how many trained tokens take about as long as the evaluation at the end.

    One process evaluates. An activation costs about what training on it costs the ranks that run the model;
    where there are several of these, training has as many at a time.
    """
    topology = cfg.topology
    spliced = SPLICED_COST * cfg.eval.ce_tokens if cfg.has_llm and cfg.eval.tokens else 0
    ranks = topology.producers or topology.shard * topology.dp
    return (cfg.eval.tokens + spliced) * ranks


def step_flops(cfg: Single, widths: tuple[int, ...]) -> float:
    """Count the operations of one step, of all ranks together; a multiply-add is two.

    Letters: B rows, F latents, D and E widths of input and target, k codes per row.

        selected kinds   encode 2BFD, decode 2BkE; backward 2BkE for the codes, 2BkE for W_dec, 2BkD for W_enc
        the others       encode 2BFD, decode 2BFE; backward 2BFE for the codes, 2BFE for W_dec, 2BFD for W_enc
        skip connection  6BDE

    Not counted: AuxK, what is computed a second time, elementwise work, and the update.

    Args:
        widths: (D,) or (D, E).
    """
    sae, rows = cfg.sae, cfg.batch
    source, target = widths[0], widths[-1]
    scored = 2 * rows * sae.num_latents * source
    if sae.kind in SELECTED:
        found = scored + 2 * rows * sae.k * (3 * target + source)
    else:
        found = 2 * scored + 6 * rows * sae.num_latents * target
    return float(found + (6 * rows * source * target if sae.skip else 0))
