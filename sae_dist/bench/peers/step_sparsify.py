"""sparsify's training step for `sae-dist bench step`: the loop of its own Trainer.fit.

As in `train_sparsify`, a stand-in takes the language model's place; its one hooked module returns the batch.
AuxK is switched on (1/32; off by default), everything else is the trainer's default: on a GPU its Triton
decoder, bfloat16 autocast and "high" float32 products. Time is taken from the stand-in's first forward to
the end of the loop, where `fit` would save. A latent is dead after the default 10M tokens; where AuxK is to
act, the trainer's own counters of the latents in question are set beyond that.

Optimizer: its default, `signum`, schedule-free; or `adam`, which is bitsandbytes' 8-bit Adam where that is
installed.

Letters: as core.types.
"""

import os
import time
from collections.abc import Callable

import torch
from sparsify_model import StandIn
from step_io import LR, Problem, read_job, serve, sum_of_squares, synchronize
from torch import Tensor

LONG = 10**6
"""Steps that the schedule is made for."""


class BatchRows(torch.nn.Module):
    """The hooked module: it returns the batch, [1, B, D], whatever it is asked for."""

    def __init__(self, x_BD: Tensor):
        super().__init__()
        self.x_BD = x_BD
        self.started: float | None = None

    def forward(self, ids_NS: Tensor) -> Tensor:
        if self.started is None:
            synchronize(self.x_BD.device)
            self.started = time.perf_counter()
        return self.x_BD[None]


class Steps(torch.utils.data.Dataset):
    """A dataset of sequences, one for each step, each as long as a batch."""

    def __init__(self, steps: int, batch: int):
        self.steps, self.ids = steps, torch.arange(batch)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, _step: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids}

    def select(self, _left: object) -> "Steps":
        """Return all data; a trainer that goes on asks for what is left of them."""
        return self


def make_sparsify(optimizer: str) -> Callable[[Problem], "Sparsify"]:
    """Return what makes the contestant, with one of its optimizers."""
    return lambda problem: Sparsify(problem, optimizer)


class Sparsify:
    def __init__(self, problem: Problem, optimizer: str):
        from sparsify import SparseCoderConfig, TrainConfig, Trainer

        self.model = StandIn(BatchRows(problem.x_BD), problem.x_BD.device)
        config = TrainConfig(
            SparseCoderConfig(num_latents=problem.latents, k=problem.k),
            batch_size=1,
            optimizer=optimizer,
            lr=LR,
            auxk_alpha=1 / 32,
            hookpoints=["rows"],
            save_every=10 * LONG,
            log_to_wandb=False,
        )
        self.batch = problem.batch
        self.trainer = Trainer(config, Steps(LONG, self.batch), self.model)
        self.sae = self.trainer.saes["rows"]
        with torch.no_grad():
            self.sae.encoder.weight.copy_(problem.W_enc_FD())
            self.sae.encoder.bias.copy_(problem.b_enc_F)
            self.sae.W_dec.copy_(problem.W_dec_FD)
            self.sae.b_dec.copy_(problem.b_dec_D)
        self.trainer.global_step = 1  # step 0 would set b_dec
        self.trainer.save = self.stop
        kind = type(self.trainer.optimizers[0]).__module__.split(".")[0]
        self.settings = f"{optimizer} ({kind}), AuxK 1/32"

    def squared_error(self, x_BD: Tensor) -> Tensor:
        return sum_of_squares(x_BD - self.sae(x_BD).sae_out)

    def revive(self, dead_F: Tensor | None) -> None:
        since_F = self.trainer.num_tokens_since_fired["rows"]
        since_F.zero_()
        if dead_F is not None:
            since_F[dead_F] = self.trainer.cfg.dead_feature_threshold + 1

    def num_dead(self) -> int:
        since_F = self.trainer.num_tokens_since_fired["rows"]
        return int((since_F > self.trainer.cfg.dead_feature_threshold).sum())

    def run(self, steps: int) -> float:
        self.trainer.dataset = Steps(steps, self.batch)
        self.model.rows.started = None
        self.trainer.fit()
        assert self.model.rows.started is not None
        return self.stopped - self.model.rows.started

    def stop(self) -> None:
        """Note the time, in place of the trainer's `save`, with which its loop ends."""
        synchronize(self.model.device)
        self.stopped = time.perf_counter()


def main() -> None:
    job = read_job()
    if job.device.type == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read at import: its Triton kernel is for CUDA
    import sparsify  # noqa: F401  # so that memory is counted from here on

    serve(job, make_sparsify(job.variant), "eai-sparsify")


if __name__ == "__main__":
    main()
