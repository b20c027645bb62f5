"""dictionary_learning's training step for `sae-dist bench step`: TopKTrainer.update.

At its defaults: float32, AuxK 1/32, gradient norm clipped to 1. A latent is dead after the default 10M
tokens; where AuxK is to act, the trainer's own counters of the latents in question are set to that. Rows are
not divided by their norm here: its training loop does that before `update`.

Letters: as core.types.
"""

import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from step_io import LR, Problem, read_job, seconds_of, serve, sum_of_squares
from torch import Tensor


class DictionaryLearning:
    settings = "float32, Adam, AuxK 1/32"

    def __init__(self, problem: Problem):
        self.x_BD = problem.x_BD
        with torch.device(problem.device):
            self.trainer = TopKTrainer(
                steps=10**9,
                activation_dim=problem.width,
                dict_size=problem.latents,
                k=problem.k,
                layer=0,
                lm_name="rows",
                dict_class=AutoEncoderTopK,
                lr=LR,
                device=str(problem.device),
            )
        ae = self.trainer.ae
        with torch.no_grad():
            ae.decoder.weight.copy_(problem.W_dec_FD.T)
            ae.encoder.weight.copy_(problem.W_enc_FD())
            ae.encoder.bias.copy_(problem.b_enc_F)
            ae.b_dec.copy_(problem.b_dec_D)
        # Step 0 would set b_dec, and the first thousand leave out the threshold for inference.
        self.step = self.trainer.threshold_start_step + 1

    def squared_error(self, x_BD: Tensor) -> Tensor:
        return sum_of_squares(x_BD - self.trainer.ae(x_BD))

    def revive(self, dead_F: Tensor | None) -> None:
        since_F = self.trainer.num_tokens_since_fired
        since_F.zero_()
        if dead_F is not None:
            since_F[dead_F] = self.trainer.dead_feature_threshold

    def num_dead(self) -> int:
        return int((self.trainer.num_tokens_since_fired >= self.trainer.dead_feature_threshold).sum())

    def run(self, steps: int) -> float:
        def fit() -> None:
            for _ in range(steps):
                self.trainer.update(self.step, self.x_BD)
                self.step += 1

        return seconds_of(fit, self.x_BD.device)


if __name__ == "__main__":
    serve(read_job(), DictionaryLearning, "dictionary-learning")
