"""SAELens' training step for `sae-dist bench step`: what SAETrainer.fit does with a batch.

TopKTrainingSAE and SAETrainer at their defaults (float32, AuxK coefficient 1, gradient norm clipped to 1,
statistics of firing). A latent is dead after the default 1000 steps; where AuxK is to act, the trainer's own
counters of the latents in question are set beyond that.

Letters: as core.types.
"""

import torch
from sae_lens.config import LoggingConfig, SAETrainerConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from sae_lens.training.sae_trainer import SAETrainer
from step_io import LR, Problem, read_job, seconds_of, serve, sum_of_squares
from torch import Tensor


class SaeLens:
    settings = "float32, Adam, AuxK 1"

    def __init__(self, problem: Problem):
        self.x_BD, device = problem.x_BD, str(problem.device)
        with torch.device(problem.device):
            self.sae = TopKTrainingSAE(
                TopKTrainingSAEConfig(
                    d_in=problem.width, d_sae=problem.latents, k=problem.k, device=device, dtype="float32"
                )
            )
        with torch.no_grad():
            self.sae.W_dec.copy_(problem.W_dec_FD)
            self.sae.W_enc.copy_(problem.W_enc_FD().T)
            self.sae.b_enc.copy_(problem.b_enc_F)
            self.sae.b_dec.copy_(problem.b_dec_D)
        config = SAETrainerConfig(
            total_training_samples=10**6 * problem.batch,
            train_batch_size_samples=problem.batch,
            lr=LR,
            lr_end=LR,
            device=device,
            logger=LoggingConfig(log_to_wandb=False),
        )
        self.trainer = SAETrainer(config, self.sae, iter(()))

    def squared_error(self, x_BD: Tensor) -> Tensor:
        return sum_of_squares(x_BD - self.sae(x_BD))

    def revive(self, dead_F: Tensor | None) -> None:
        since_F = self.trainer.n_forward_passes_since_fired
        since_F.zero_()
        if dead_F is not None:
            since_F[dead_F] = self.trainer.cfg.dead_feature_window + 1

    def num_dead(self) -> int:
        return int(self.trainer.dead_neurons.sum())

    def run(self, steps: int) -> float:
        def fit() -> None:
            for _ in range(steps):
                self.trainer.maybe_reset_sparsity()
                self.trainer.step(self.x_BD)
                self.trainer.n_training_steps += 1

        return seconds_of(fit, self.x_BD.device)


if __name__ == "__main__":
    serve(read_job(), SaeLens, "sae-lens")
