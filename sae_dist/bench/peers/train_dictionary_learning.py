"""dictionary_learning (PyPI dictionary-learning) by its own trainSAE with TopKTrainer and AutoEncoderTopK.

AuxK at its default 1/32. A latent counts as dead after the benchmark's number of tokens; its own 10M would
switch AuxK off in a short run. Schedule of its demo: warmup of 1000 steps (at most a tenth of the run),
linear to zero over the last fifth. Input: normalize_activations=True, as its demo has it: unit mean
squared norm, undone in the biases that it saves.

Letters: as core.types.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from dictionary_learning.trainers.top_k import AutoEncoderTopK, TopKTrainer
from dictionary_learning.training import trainSAE
from peer_io import Batches, read_job, write_result


def main() -> None:
    job = read_job()
    batches = Batches(job)
    warmup = min(1000, job.steps // 10)

    def trainer(**config: Any) -> TopKTrainer:
        made = TopKTrainer(**config)
        # An attribute without an argument of the constructor.
        made.dead_feature_threshold = min(made.dead_feature_threshold, job.dead_after)
        return made

    config = {
        "trainer": trainer,
        "dict_class": AutoEncoderTopK,
        "steps": job.steps,
        "activation_dim": batches.width,
        "dict_size": job.num_latents,
        "k": job.k,
        "layer": 0,
        "lm_name": "file",
        "lr": job.lr,
        "warmup_steps": warmup,
        "decay_start": int(0.8 * job.steps),
        "seed": job.seed,
        "device": job.device,
    }
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        trainSAE(
            batches,
            [config],
            steps=job.steps,
            save_dir=folder,
            normalize_activations=True,
            device=job.device,
        )
        seconds = time.monotonic() - started
        weights = torch.load(Path(folder) / "trainer_0" / "ae.pt", weights_only=True)
    write_result(
        job,
        package="dictionary-learning",
        seconds=seconds,
        settings=f"AuxK 1/32, dead after {job.dead_after} tokens, warmup {warmup} steps, decay over the "
        "last fifth, normalize_activations",
        W_enc_FD=weights["encoder.weight"],
        b_enc_F=weights["encoder.bias"],
        W_dec_FD=weights["decoder.weight"].T,
        b_dec_D=weights["b_dec"],
    )


if __name__ == "__main__":
    main()
