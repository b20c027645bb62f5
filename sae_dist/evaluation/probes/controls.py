"""Controls: the trained dictionary on activations without the structure that training found.

shuffled_dimensions  each dimension's values exchanged among rows: keeps every mean and variance, removes
                     what dimensions have in common
shuffled_rows        each row's values exchanged among dimensions: keeps every norm, removes directions
random_llm           activations of the same text in the same LM with random weights, shifted and scaled to
                     the mean and mean squared deviation of the real ones: else their size would decide

An FVU that is not clearly worse than the real one means that the dictionary reconstructs anything of that
size. Heap et al. 2025 (arXiv 2501.17727) train on the random LM instead, which asks more:
llm.random_init=true does.

Letters: as core.types; N rows.
"""

from typing import Any

import torch
from torch import Tensor

from sae_dist.core.reconstruction import Fidelity
from sae_dist.export.exported import Encode, ExportedSae

ROWS = 16_384
NUMBERS = 1 << 26
"""The most numbers (rows times width) that are held."""
BATCH = 2048


def controls(
    sae: ExportedSae, encode: Encode, x_ND: Tensor, random_ND: Tensor | None
) -> dict[str, dict[str, Any]]:
    """Compute `controls` of eval.json: FVU, explained variance, l2_ratio and L0 on `real` and each control.

    Args:
        random_ND: activations of the random LM; None: there are none.
    """
    arms = {
        "real": x_ND,
        "shuffled_dimensions": shuffled_dimensions(x_ND),
        "shuffled_rows": shuffled_rows(x_ND),
    }
    if random_ND is not None:
        arms["random_llm"] = matched(random_ND, x_ND)
    return {name: reconstructed(sae, encode, rows) for name, rows in arms.items()}


def shuffled_dimensions(x_ND: Tensor) -> Tensor:
    """Shuffle the values of each column, in the same way in every evaluation."""
    draw = torch.Generator().manual_seed(0)
    columns = [x_ND[torch.randperm(len(x_ND), generator=draw), d] for d in range(x_ND.shape[1])]
    return torch.stack(columns, 1)


def shuffled_rows(x_ND: Tensor) -> Tensor:
    """Shuffle the values of each row, in the same way in every evaluation."""
    draw = torch.Generator().manual_seed(0)
    rows = [x_D[torch.randperm(len(x_D), generator=draw)] for x_D in x_ND]
    return torch.stack(rows)


def matched(x_ND: Tensor, like_ND: Tensor) -> Tensor:
    """Shift and scale x to the mean and the mean squared deviation of other rows."""
    mean_D, like_mean_D = x_ND.double().mean(0), like_ND.double().mean(0)
    deviation = (x_ND.double() - mean_D).square().sum(1).mean()
    wanted = (like_ND.double() - like_mean_D).square().sum(1).mean()
    return ((x_ND.double() - mean_D) * (wanted / deviation).sqrt() + like_mean_D).to(like_ND)


def reconstructed(sae: ExportedSae, encode: Encode, x_ND: Tensor) -> dict[str, float]:
    """Measure FVU, explained variance, l2_ratio and L0 of an autoencoder on these rows."""
    fidelity = Fidelity(x_ND.to(sae.W_enc_FD).mean(0))
    codes_found = 0
    for part in x_ND.split(BATCH):
        x_BD = part.to(sae.W_enc_FD)
        codes = sae.encode(x_BD, encode)
        codes_found += int((codes.value_P > 0).sum())
        fidelity.add(x_BD, sae.decode(codes, x_BD))
    numbers = fidelity.numbers()
    kept = ("fvu", "explained_variance", "l2_ratio")
    return {key: numbers[key] for key in kept} | {"l0": codes_found / len(x_ND)}


def rows_held(width: int) -> int:
    """Return the number of rows of each control."""
    return max(1, min(ROWS, NUMBERS // width))
