"""What a run is made of while it trains: the parts, its progress, and what the ranks agree on."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_dist.config.run import RunConfig
from sae_dist.core.errors import NumericsError
from sae_dist.core.types import Batch, LossTerms, Precision
from sae_dist.distributed.mesh import Topology
from sae_dist.distributed.runtime import StopRequest


class Draw(Protocol):
    """The stream: this rank's raw rows of a step and their ids, as often as they are asked for."""

    def draw(self, step: int) -> tuple[Tensor, Tensor]: ...

    def counts(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, states: dict[str, Any]) -> None: ...

    def seconds(self) -> float: ...


class Dictionary(Protocol):
    """A dictionary in training."""

    def start_from(self, x_bD: Tensor) -> None: ...

    def loss(self, x_bD: Tensor, tokens: int, with_aux: bool) -> LossTerms: ...

    def state(self) -> dict[str, tuple[Tensor, str]]: ...


class Optimizer(Protocol):
    """The step."""

    updates: int

    def step(self, total: Tensor, lr: float) -> tuple[Tensor, Tensor]: ...

    def state(self) -> dict[str, tuple[Tensor, str]]: ...


class Meter(Protocol):
    """Metrics of the steps since the last flush."""

    sinks: Sequence[Any]
    speed: Any

    def record(self, run: "Run", batch: Batch, terms: LossTerms, norm: Tensor, lr: float) -> None: ...

    def flush(self, run: "Run") -> None: ...

    def add(self, values: dict[str, float], seconds: float) -> None: ...

    def balance_in_words(self) -> str | None: ...

    def summary(self, tokens: int) -> dict[str, Any]: ...

    def alert(self, title: str, text: str) -> None: ...

    def close(self) -> None: ...


class Evaluator(Protocol):
    """Held-out evaluation every so many steps, by all consumers of a group."""

    every: int

    def evaluate(self, run: "Run") -> dict[str, float]: ...


class Store(Protocol):
    """Checkpoints."""

    def save(self, step: int, tensors: dict[str, tuple[Tensor, str]], scalars: dict[str, Any]) -> Any: ...

    def wait(self) -> None: ...

    def leave(self) -> None: ...

    def check(self) -> None: ...

    def load(self, path: Path, tensors: dict[str, tuple[Tensor, str]]) -> dict[str, Any]: ...

    def damage(self, path: Path) -> str | None: ...

    def forget_after(self, path: Path | None) -> None: ...


@dataclass
class Progress:
    """How far the run is. `tokens` counts activations over all replicas."""

    step: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    tokens_at_start: int = 0

    def rate(self) -> float:
        """Tokens per second since this process started training."""
        return (self.tokens - self.tokens_at_start) / max(time.monotonic() - self.started, 1e-9)


class Agreement:
    """What consumers agree on once per step: bad numbers, a wish to stop, whether any latent is dead.

    One reduction per step; its result is copied to the host asynchronously and read one step later, so
    that the step never waits for it.
    """

    def __init__(self, topology: Topology, stop: StopRequest):
        self.topology, self.stop = topology, stop
        self.posted: tuple[int, Tensor] | None = None
        self.event: torch.cuda.Event | None = None
        self.any_dead = False

    def post(self, step: int, terms: LossTerms, not_finite: Tensor) -> None:
        """Reduce this step's facts; this rank's own squared error tells which rank broke first."""
        own, num_dead = terms.parts["squared_error"], terms.parts["num_dead"]
        broken = torch.where(torch.isfinite(own), 0, self.topology.rank + 1)
        wish = torch.full_like(broken, int(self.stop.wanted))
        facts = torch.stack([broken, not_finite.to(broken), wish, num_dead.ceil().to(broken)])
        self.posted = step, self.topology.consumers.max(facts).to("cpu", non_blocking=True)
        self.event = torch.cuda.Event() if own.is_cuda else None
        if self.event:
            self.event.record()

    def pending(self) -> tuple[int, list[int]] | None:
        """Step and facts posted and not yet read: part of a checkpoint, to be read after a resume."""
        if self.posted is None:
            return None
        if self.event:
            self.event.synchronize()
        return self.posted[0], self.posted[1].tolist()

    def restore(self, any_dead: bool, pending: list[Any] | None) -> None:
        """Go back to what a checkpoint remembers; a wish to stop is not carried over."""
        self.any_dead = any_dead
        if pending is not None:
            step, (broken, not_finite, _, dead) = pending
            self.posted = step, torch.tensor([broken, not_finite, 0, dead])

    def read(self) -> bool:
        """Whether to stop, as agreed one step ago.

        Raises:
            NumericsError: a loss or gradient was not finite; that update was skipped.
        """
        posted = self.pending()
        if posted is None:
            return False
        step, facts = posted
        self.posted = None
        self.any_dead = facts[3] > 0
        if facts[0] or facts[1]:
            where = f"on rank {facts[0] - 1}" if facts[0] else "in the gradient only"
            raise NumericsError(
                f"step {step}: the loss is not finite ({where}); the update was skipped and the last "
                "checkpoint is intact; lower optim.lr, or look at the activations"
            )
        return bool(facts[2])


@dataclass(eq=False)
class Run:
    """The parts that `loop.train` walks through for one dictionary, on a consumer rank."""

    cfg: RunConfig
    folder: Path
    topology: Topology
    shuffle: Draw
    dictionary: Dictionary
    optimizer: Optimizer
    meter: Meter
    checkpoints: Store
    agreement: Agreement
    device: torch.device
    progress: Progress
    steps: int
    save_every: int
    lr: float
    widths: tuple[int, ...]
    scales: list[float]
    shift_C: Tensor
    wandb_id: str
    seconds: float = 0.0
    pauses: list[float] = field(default_factory=list)
    evaluator: "Evaluator | None" = None

    def next_batch(self) -> Batch:
        """This rank's rows of the step, scaled, in the master dtype."""
        raw, ids = self.shuffle.draw(self.progress.step)
        return Batch(self.normalise(raw), ids)

    def normalise(self, raw: Tensor) -> Tensor:
        """Rows as they came over the wire -> shifted and scaled, on the device."""
        return (self.to_master(raw) - self.shift_C) * self.scale_C()

    def to_master(self, raw: Tensor) -> Tensor:
        """Rows as they came over the wire, on the device and in the dtype of the weights."""
        return raw.to(self.device, Precision.of(self.cfg.precision).master)

    def scale_C(self) -> Tensor:
        """The scale of each column of a row: one per hook."""
        master = Precision.of(self.cfg.precision).master
        parts = [torch.full((n,), s, dtype=master) for n, s in zip(self.widths, self.scales, strict=True)]
        return torch.cat(parts).to(self.device)

    def save(self) -> None:
        """Begin to checkpoint the state after the current step; called by all consumer ranks.

        How long that took is remembered. Metrics are flushed first, so that lines of metrics.jsonl never
        span a checkpoint and a resumed run writes the same lines.
        """
        began = time.perf_counter()
        self.meter.flush(self)
        lanes = gather_dicts(self.shuffle.state(), self.topology)
        scalars = {
            "step": self.progress.step,
            "tokens": self.progress.tokens,
            "updates": self.optimizer.updates,
            "scales": self.scales,
            "any_dead": self.agreement.any_dead,
            "pending": self.agreement.pending(),
            "wandb_id": self.wandb_id,
            "spent": self.meter.speed.spent(),
            "lanes": lanes,
        }
        self.checkpoints.save(self.progress.step, self.tensors(), scalars)
        self.pauses.append(time.perf_counter() - began)

    def tensors(self) -> dict[str, tuple[Tensor, str]]:
        """What a checkpoint holds, with its placement."""
        shift = {"shift": (self.shift_C, "replicated")}
        return self.dictionary.state() | self.optimizer.state() | shift


def gather_dicts(own: dict[str, Any], topology: Topology) -> dict[str, Any]:
    """The union of every consumer rank's dictionary."""
    each: list[Any] = [None] * topology.num_consumers
    torch.distributed.all_gather_object(each, own, group=topology.consumer_group)
    return {key: value for part in each for key, value in part.items()}
