"""The tokens of a text that count for a dictionary: those of kinds that it was trained on.

Letters: as core.types.
"""

import torch
from torch import Tensor

from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel

MAX_NORM_MULTIPLE = 10.0
"""Activations longer than this multiple of the text's median are outliers where a run does not say it."""


def special_tokens(dictionary: Dictionary, lm: LanguageModel, ids_S: Tensor) -> Tensor:
    """Return which tokens are no activations in training [S]: special ones, and those excluded there."""
    run = dictionary.place.run
    special = {*lm.special_ids, *((run.tokens.exclude_ids or ()) if run is not None else ())}
    return torch.isin(ids_S, torch.tensor(sorted(special), dtype=torch.int64, device=ids_S.device))


def multiple(dictionary: Dictionary) -> float:
    """Return how many times the median an activation is an outlier's."""
    run = dictionary.place.run
    return (run.tokens.max_norm_multiple if run is not None else None) or MAX_NORM_MULTIPLE


def outliers(dictionary: Dictionary, special_S: Tensor, x_SD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the norms of activations, which are outliers, and which tokens count [S], each."""
    norm_S = torch.linalg.vector_norm(x_SD, dim=1, dtype=torch.promote_types(x_SD.dtype, torch.float32))
    norm_S = norm_S.to(special_S.device)
    run = dictionary.place.run
    spared = run is not None and run.tokens.max_norm_multiple is None  # training saw outliers, too
    outlier_S = ~special_S & (norm_S > multiple(dictionary) * norm_S[~special_S].median())
    return norm_S, outlier_S, ~special_S if spared else ~special_S & ~outlier_S
