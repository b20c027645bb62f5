"""SAELens (PyPI sae-lens) by its own TopKTrainingSAE and SAETrainer.fit.

AuxK as SAELens has it (coefficient 1). A latent counts as dead after the benchmark's number of tokens, at
most SAELens' own 1000 steps: with that default AuxK would not act at all in a short run. Schedule of its
training guide: constant, linear to zero over the last fifth. Input: mean norm sqrt(D), as the file has
it, which is what its normalize_activations=expected_average_only_in makes; so that is none here.

Letters: as core.types.
"""

import tempfile
import time
from pathlib import Path

from peer_io import Batches, read_job, write_result
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file


def main() -> None:
    job = read_job()
    batches = Batches(job)
    sae_config = TopKTrainingSAEConfig(
        d_in=batches.width, d_sae=job.num_latents, k=job.k, device=job.device, dtype="float32"
    )
    trainer_config = SAETrainerConfig(
        total_training_samples=job.steps * job.batch,
        train_batch_size_samples=job.batch,
        lr=job.lr,
        lr_end=job.lr / 10,  # required by the trainer; a constant schedule does not read it
        lr_decay_steps=job.steps // 5,
        dead_feature_window=min(1000, max(1, job.dead_after // job.batch)),
        device=job.device,
        logger=LoggingConfig(log_to_wandb=False),
    )
    trainer = SAETrainer(trainer_config, TopKTrainingSAE(sae_config), iter(batches))
    started = time.monotonic()
    sae = trainer.fit()
    seconds = time.monotonic() - started
    with tempfile.TemporaryDirectory() as folder:
        # Its own export: decoder norms folded into the encoder, rows of unit length.
        sae.save_inference_model(folder)
        weights = load_file(Path(folder) / "sae_weights.safetensors")
    write_result(
        job,
        package="sae-lens",
        seconds=seconds,
        settings=f"AuxK 1, dead after {trainer_config.dead_feature_window} steps, decay over the last fifth",
        W_enc_FD=weights["W_enc"].T,
        b_enc_F=weights["b_enc"],
        W_dec_FD=weights["W_dec"],
        b_dec_D=weights["b_dec"],
    )


if __name__ == "__main__":
    main()
