"""sparsify (PyPI eai-sparsify) by its own Trainer.fit.

Its trainer learns inside a forward hook of a language model. Here a stand-in takes the model's place: its
token ids are row numbers, and its one hooked module returns those rows. Everything else is the trainer's
own: loss, AuxK (switched on, 1/32), constraint, optimizer, schedule. A latent counts as dead after the
benchmark's number of tokens; its own 10M would switch AuxK off in a short run. Input: the rows as they
are; sparsify has no normalisation and its loss is relative to the variance.

Optimizer: `adam`, with warmup of its default 1000 steps (at most a tenth of the run) and linear to zero;
or its default, `signum`, schedule-free.

Letters: as core.types.
"""

import os
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from peer_io import Batches, read_job, write_result
from safetensors.torch import load_file
from sparsify_model import StandIn


class NumberedRows(torch.nn.Module):
    """The hooked module: it returns rows by their numbers, [N, S] -> [N, S, D]."""

    def __init__(self, batches: Batches):
        super().__init__()
        self.batches = batches

    def forward(self, ids_NS: torch.Tensor) -> torch.Tensor:
        return self.batches.at(ids_NS.cpu().numpy())


class Sequences(torch.utils.data.Dataset):
    """One sequence of row numbers for each step."""

    def __init__(self, batches: Batches):
        self.ids = torch.from_numpy(batches.order).view(batches.steps, batches.batch)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, step: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[step]}


def main() -> None:
    job = read_job()
    if job.device == "cpu":
        os.environ["SPARSIFY_DISABLE_TRITON"] = "1"  # read at import: its Triton kernel is for CUDA
    from sparsify import SparseCoderConfig, TrainConfig, Trainer

    batches = Batches(job)
    optimizer = job.variant or "signum"
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            SparseCoderConfig(num_latents=job.num_latents, k=job.k),
            batch_size=1,
            optimizer=optimizer,
            lr=job.lr,
            lr_warmup_steps=min(1000, job.steps // 10),
            auxk_alpha=1 / 32,
            dead_feature_threshold=min(10_000_000, job.dead_after),
            hookpoints=["rows"],
            init_seeds=[job.seed],
            save_every=job.steps + 2,
            log_to_wandb=False,
            run_name="run",
            save_dir=folder,
        )
        trainer = Trainer(
            config, Sequences(batches), StandIn(NumberedRows(batches), torch.device(batches.device))
        )
        started = time.monotonic()
        trainer.fit()
        seconds = time.monotonic() - started
        weights = load_file(Path(folder) / "run" / "rows" / "sae.safetensors")
    write_result(
        job,
        package="eai-sparsify",
        seconds=seconds,
        settings=describe_settings(optimizer, config),
        W_enc_FD=weights["encoder.weight"],
        b_enc_F=weights["encoder.bias"],
        W_dec_FD=weights["W_dec"],
        b_dec_D=weights["b_dec"],
    )


def describe_settings(optimizer: str, config: SimpleNamespace) -> str:
    """Describe what was set, for the report."""
    warmup = f", warmup {config.lr_warmup_steps} steps" if optimizer == "adam" else ""
    return f"{optimizer}, AuxK 1/32, dead after {config.dead_feature_threshold} tokens{warmup}"


if __name__ == "__main__":
    main()
