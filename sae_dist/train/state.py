"""The parts of a run in training: its process, its progress, what ranks agree on, and each dictionary's own.

Letters: as core.types.
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_dist.checkpoint.store import Checkpoints
from sae_dist.config.run import Resolved, Single
from sae_dist.core.errors import NumericsError
from sae_dist.core.moving import moved
from sae_dist.core.place import Place
from sae_dist.core.types import Batch, LlmFacts, LossTerms, Precision
from sae_dist.dictionary.base import Dictionary
from sae_dist.distributed.control import Control
from sae_dist.distributed.mesh import Topology
from sae_dist.distributed.runtime import StopRequest
from sae_dist.optim.engine import Engine
from sae_dist.optim.row_adam import RowAdam
from sae_dist.train.speed import Watch
from sae_dist.train.stream import Columns

if TYPE_CHECKING:
    from sae_dist.train.evaluator import Evaluator
    from sae_dist.train.meter import RunMeter


@dataclass(frozen=True)
class Rank:
    """One process of a run: its place among the others, and what it watches itself with.

    Attributes:
        cfg: of the run; the dictionaries of a grid have configs of their own.
        folder: of the run.
        facts: of the LLM; None if there is none.
        where: this process among all that were started.
        topology: the groups of ranks that it belongs to.
        stop: whether a signal asked to stop.
        control: short messages among all ranks.
        watch: clock and telemetry.
    """

    cfg: Resolved
    folder: Path
    facts: LlmFacts | None
    where: Place
    topology: Topology
    device: torch.device
    stop: StopRequest
    control: Control
    watch: Watch


@dataclass
class Progress:
    """The progress of a run. `tokens` counts activations over all replicas."""

    step: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    tokens_at_start: int = 0

    def rate(self) -> float:
        """Return the tokens per second since this process started training."""
        return (self.tokens - self.tokens_at_start) / max(time.monotonic() - self.started, 1e-9)


class Agreement:
    """An agreement of consumers, once per step: numbers that are not finite, a wish to stop, dead latents.

    There is one reduction per step. Its result is copied to the host asynchronously and read one step later,
    so that the step never waits for it.
    """

    def __init__(self, topology: Topology, stop: StopRequest):
        self.topology, self.stop = topology, stop
        self.posted: tuple[int, Tensor] | None = None
        self.event: torch.cuda.Event | None = None
        self.any_dead = False
        self.most_dead: int | None = None

    def post(self, step: int, terms: LossTerms, not_finite: Tensor) -> None:
        """Reduce the facts of this step; this rank's own squared error tells whether it broke here."""
        own, num_dead = terms.parts["squared_error"], terms.parts["num_dead"]
        broken = torch.where(torch.isfinite(own), 0, self.topology.rank + 1)
        wish = torch.full_like(broken, int(self.stop.wanted))
        most = terms.parts.get("most_dead", torch.zeros_like(broken))
        facts = torch.stack([broken, not_finite.to(broken), wish, num_dead.ceil().to(broken), most])
        self.posted = step, self.topology.consumers.max(facts).to("cpu", non_blocking=True)
        self.event = torch.cuda.Event() if own.is_cuda else None
        if self.event:
            self.event.record()

    def pending(self) -> tuple[int, list[int]] | None:
        """Return the step and facts that are not read yet; a checkpoint keeps them for a resumed run."""
        if self.posted is None:
            return None
        if self.event:
            self.event.synchronize()
        return self.posted[0], self.posted[1].tolist()

    def restore(
        self,
        any_dead: bool,
        pending: list[Any] | None,
        most_dead: int | None = None,
        shards: int | None = None,
    ) -> None:
        """Restore what a checkpoint holds, except for a wish to stop.

        Args:
            shards: the number of shards that wrote it. With another number now, one shard may have the dead
                latents of all of them.
        """
        factor = 1 if shards in (None, self.topology.num_shards) else shards
        self.any_dead, self.most_dead = any_dead, None if most_dead is None else most_dead * factor
        if pending is not None:
            step, (broken, not_finite, _, dead, *most) = pending
            self.posted = step, torch.tensor([broken, not_finite, 0, dead, *(m * factor for m in most)])

    def read(self) -> bool:
        """Return whether to stop, as agreed one step ago.

        Raises:
            NumericsError: a loss or gradient was not finite; that update was skipped.
        """
        posted = self.pending()
        if posted is None:
            return False
        step, facts = posted
        self.posted = None
        self.any_dead = facts[3] > 0
        self.most_dead = facts[4] if len(facts) > 4 else None
        if facts[0] or facts[1]:
            where = f"on rank {facts[0] - 1}" if facts[0] else "in the gradient only"
            raise NumericsError(
                f"step {step}: the loss is not finite ({where}); the update was skipped and the last "
                "checkpoint is intact; lower optim.lr, or look at the activations"
            )
        return bool(facts[2])


@dataclass(eq=False)
class Run:
    """The training of one dictionary on a consumer rank: the parts that `loop.train` uses.

    Attributes:
        save_every: steps between checkpoints; more than the run has if only its end is kept.
        lr: the decoder's learning rate before its schedule.
        widths: (D,) of an autoencoder, (D, E) of a transcoder.
        scales: factor of the activations at each of these places, after `shift_C` is subtracted.
        mean_shares: at each of these places, the mean's share of the squared norm in the first batch; empty
            if the mean is subtracted, and in a run that goes on.
        seconds: spent in steps, without waiting for the stream.
        pauses: seconds that each checkpoint held training up.
    """

    cfg: Single
    folder: Path
    topology: Topology
    shuffle: Columns
    dictionary: Dictionary
    optimizer: Engine | RowAdam
    meter: "RunMeter"
    checkpoints: Checkpoints
    agreement: Agreement
    device: torch.device
    progress: Progress
    save_every: int
    lr: float
    widths: tuple[int, ...]
    scales: list[float]
    shift_C: Tensor
    wandb_id: str
    mean_shares: list[float] = field(default_factory=list)
    seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)
    evaluator: "Evaluator | None" = None
    _scaled: tuple[list[float], Tensor] | None = None

    @property
    def steps(self) -> int:
        """Return the steps of the whole run."""
        return self.cfg.steps

    def next_batch(self) -> Batch:
        """Draw this rank's rows of the step, [b, C], scaled, in the dtype of the weights."""
        raw, ids = self.shuffle.draw(self.progress.step)
        return Batch(self.normalise(raw), ids)

    def normalise(self, raw: Tensor) -> Tensor:
        """Return rows [b, C] from the wire, shifted and scaled, on the device."""
        return (self.to_master(raw) - self.shift_C) * self.scale_C()

    def to_master(self, raw: Tensor) -> Tensor:
        """Return rows [b, C] from the wire on the device, in the dtype of the weights.

        They are moved as they are and converted there: torch would convert them on the host first.
        """
        return moved(raw, self.device).to(Precision.of(self.cfg.precision).master)

    def scale_C(self) -> Tensor:
        """Return the scale of each column of a row, [C], one value per hook."""
        if self._scaled is None or self._scaled[0] != self.scales:
            master, each = Precision.of(self.cfg.precision).master, zip(self.widths, self.scales, strict=True)
            parts = [torch.full((n,), scale, dtype=master, device=self.device) for n, scale in each]
            self._scaled = list(self.scales), torch.cat(parts)
        return self._scaled[1]

    def save(self) -> None:
        """Begin to checkpoint the state after the current step; every consumer rank calls this.

        Metrics are flushed first, so that no line of metrics.jsonl spans a checkpoint and a resumed run
        writes the same lines.
        """
        began = time.perf_counter()
        self.meter.flush(self)
        lanes = self.topology.consumers.gather_json(self.shuffle.state())
        scalars = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "updates": self.optimizer.updates,
            "scales": self.scales,
            "any_dead": self.agreement.any_dead,
            "most_dead": self.agreement.most_dead,
            "shards": self.topology.num_shards,
            "pending": self.agreement.pending(),
            "wandb_id": self.wandb_id,
            "spent": self.meter.speed.spent(),
            "unwritten": self.meter.unwritten(),
            "lanes": {lane: at for each in lanes for lane, at in each.items()},
        }
        self.checkpoints.save(self.progress.step, self.tensors(), scalars)
        self.pauses.append(time.perf_counter() - began)

    def tensors(self) -> dict[str, tuple[Tensor, str]]:
        """Return the tensors of a checkpoint, each with its placement over the ranks."""
        shift = {"shift": (self.shift_C, "replicated")}
        return self.dictionary.state() | self.optimizer.state() | shift
