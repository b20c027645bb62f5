"""Our training step for `sae-dist bench step`: what `train.loop` does with a batch, its bookkeeping included.

The default configuration, with `optim=adam` or `optim=row_adam`. A latent is dead after the default 10M
tokens; where AuxK is to act, `last_fired` of the latents in question is set back beyond that.
Letters: as core.types.

python -m sae_dist.bench.step.ours job.json
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_dist.bench.peers.step_io import LR, Problem, read_job, seconds_of, serve
from sae_dist.bench.scaling import only_rank
from sae_dist.config.resolve import resolve
from sae_dist.config.run import Single, narrowed
from sae_dist.config.sections import SaeConfig
from sae_dist.core.place import place
from sae_dist.core.types import ActivationChunk, Position
from sae_dist.dictionary import base
from sae_dist.distributed import runtime
from sae_dist.launch.compose import compose_config
from sae_dist.shuffle.lanes import Counts
from sae_dist.train.balance import Balance
from sae_dist.train.build import build_run
from sae_dist.train.loop import advance
from sae_dist.transport.timed import Timed

TOKENS = 10**9
"""Length of the run that the schedule is made for."""


class SameRows:
    """A stream that draws the same rows for every step; see `train.stream.Columns`."""

    def __init__(self, x_BD: Tensor):
        self.x_BD, self.width, self.widths = x_BD, x_BD.shape[1], (x_BD.shape[1],)
        self.ids_B = torch.arange(len(x_BD), device=x_BD.device)

    def draw(self, _step: int) -> tuple[Tensor, Tensor]:
        """Return the rows and their ids."""
        return self.x_BD, self.ids_B

    def counts(self) -> Counts:
        """Count rows left out or repeated: there are none."""
        return Counts()

    def open(self, _lane: int, _start: Position | None) -> Iterator[ActivationChunk]:
        """Yield no chunk: nothing asks for one."""
        return iter(())


class Ours:
    """The dictionary and optimizer of sae_dist; see `peers.step_io.Stepper`."""

    def __init__(self, problem: Problem, words: list[str]):
        device = problem.device
        cfg = configuration(problem, words)
        self.folder = tempfile.TemporaryDirectory()
        rank = only_rank(cfg, Path(self.folder.name), device)
        rows: Any = SameRows(problem.x_BD)
        balance = Balance(cfg, rank.topology, Timed(rows), None)
        with start_not_drawn():
            self.run_state = build_run(rank, cfg, rank.folder, rows, balance, None)
        self.dictionary: Any = self.run_state.dictionary
        self.dictionary.start_from(problem.x_BD)
        start = {"W_dec": problem.W_dec_FD, "W_enc": problem.W_enc_FD()}
        start |= {"b_enc": problem.b_enc_F, "b_dec": problem.b_dec_D}
        with torch.no_grad():
            for name, value in start.items():
                getattr(self.dictionary, name).copy_(value)
        self.settings = f"float32, kernels={cfg.kernels}, optim={cfg.optim.kind}, AuxK 1/32"

    def squared_error(self, x_BD: Tensor) -> Tensor:
        """Return the squared error that the loss itself computes."""
        return self.dictionary.loss(x_BD, 0, False).parts["squared_error"]

    def revive(self, dead_F: Tensor | None) -> None:
        """Set when latents fired last, by the run's count of tokens, and whether ranks know of a dead one."""
        dead, tokens = self.dictionary.dead, self.run_state.progress.tokens
        dead.last_fired_F.fill_(tokens)
        if dead_F is not None:
            dead.last_fired_F[dead_F] = tokens - dead.dead_after - 1
        most = 0 if dead_F is None else int(dead_F.sum())
        self.run_state.agreement.restore(dead_F is not None, None, most)

    def num_dead(self) -> int:
        """Count the dead latents at the end of the last step."""
        return int(self.dictionary.dead.mask(self.run_state.progress.tokens).sum())

    def run(self, steps: int) -> float:
        """Make steps of the loop; return their seconds."""

        def train() -> None:
            for _ in range(steps):
                advance(self.run_state)

        return seconds_of(train, self.run_state.device)


def configuration(problem: Problem, words: list[str]) -> Single:
    """Return the default configuration at the problem's shape."""
    sizes = [f"batch={problem.batch}", f"train_tokens={TOKENS}", f"optim.lr={LR}"]
    cfg = compose_config([f"device={problem.device.type}", "metrics.wandb=off", *sizes, *words])
    cfg.sae = SaeConfig(
        **{**vars(cfg.sae), "num_latents": problem.latents, "k": problem.k, "expansion": None}
    )
    return narrowed(Single, resolve(cfg, None, problem.width))


@contextmanager
def start_not_drawn() -> Iterator[None]:
    """Leave the start weights undrawn, as the problem's replace them.

    For 2^20 latents the host would take minutes to draw them in float64.
    """
    drawing = base.unit_blocks
    base.unit_blocks = undrawn
    try:
        yield
    finally:
        base.unit_blocks = drawing


def undrawn(seed: int, first: int, last: int, width: int, stream: int = 0) -> Iterator[Tensor]:
    """Yield no rows, in place of `dictionary.latents.unit_blocks`: the matrices keep what they have."""
    return iter(())


def make_ours(words: list[str]) -> Callable[[Problem], Ours]:
    """Return what makes the contestant, with some overrides."""
    return lambda problem: Ours(problem, words)


def main() -> None:
    job = read_job()
    runtime.start(place(), job.device.type, 600.0)
    try:
        serve(job, make_ours((job.variant or "").split()), None)
    finally:
        runtime.finish()


if __name__ == "__main__":
    main()
