"""A test of whether a latent fires unusually often in one text, judged by its rate on other texts.

Tokens of a document are not independent: a latent that fires once is likely to fire again. The null model is
that each document has its own rate, Beta with the latent's rate as its mean and c as the correlation of two
tokens, so that the count in a text is beta-binomial. The rate itself was measured on documents, too: n tokens
count as n / (1 + (tokens per document - 1) c) independent ones, and half a firing is added to them. What c is
differs between latents, and a small one makes single firings likelier, a large one many: the greatest p-value
of `CORRELATIONS` counts. Letters: as core.types; I some latents, J possible counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.export.statistics import CodeStatistics
from sae_dist.interpret.dictionary import Dictionary

CORRELATIONS = (0.02, 0.06, 0.2)
"""Correlations of a latent's firing on two tokens of a document; docs/python.md says how they were chosen."""
LEVEL = 0.05
"""How often a text with nothing unusual may have a latent that is called unusual, at most."""
DOCUMENT_TOKENS = 256
"""Tokens per document where the dictionary does not say its context."""
NOT_MEASURED = (
    "the dictionary's firing rates were never measured; give rates=, or measure them: d.measure(lm)"
)


@dataclass(frozen=True)
class Rates:
    """The rates at which latents fire on other texts.

    Attributes:
        rate_F: share of tokens, as measured.
        rows: on how many tokens; where nothing says it, the fewest that the smallest rate can come from.
        document_tokens: how many of them lie in a document, at most.
    """

    rate_F: Tensor
    rows: int
    document_tokens: int = DOCUMENT_TOKENS

    @classmethod
    def of(cls, dictionary: Dictionary, given: Any) -> "Rates | None":
        """Return the rates that are given, else those measured; None: there are none.

        Raises:
            ConfigError: what is given is not one share of tokens for each latent.
        """
        if given is None:
            statistics = dictionary.place.statistics(dictionary.num_latents)
            given = dictionary.rate if statistics is None else statistics
        if given is None:
            return None
        rows = given.rows if isinstance(given, CodeStatistics) else None
        try:
            rate_F = torch.as_tensor(given.rate_F if isinstance(given, CodeStatistics) else given)
        except (TypeError, ValueError, RuntimeError):
            raise ConfigError(f"rates={type(given).__name__}: give a number for each latent") from None
        rate_F = rate_F.detach().double().cpu()
        F = dictionary.num_latents
        if rate_F.shape != (F,) or not bool(((rate_F >= 0) & (rate_F <= 1)).all()):
            raise ConfigError(
                f"rates has shape {list(rate_F.shape)} or numbers outside of 0 to 1; give the share of "
                f"tokens on which each of the {F:,} latents fires"
            )
        if rows is None:
            some = rate_F[rate_F > 0]
            rows = round(1 / float(some.min())) if len(some) else 1
        return cls(rate_F, rows, min(dictionary.place.context or DOCUMENT_TOKENS, max(rows, 1)))

    def expected(self, latent_I: Tensor) -> Tensor:
        """Return rates [I] that are never 0: half a firing is added to those counted."""
        return (self.rate_F[latent_I] * self.rows + 0.5) / (self.rows + 1)

    def surprise(self, latent_I: Tensor) -> Tensor:
        """Return -log2 of the rates [I], in bits."""
        return -self.expected(latent_I).log2()

    def tail(
        self, latent_I: Tensor, count_I: Tensor, tokens: int, correlations: Sequence[float] = CORRELATIONS
    ) -> Tensor:
        """Return how likely a text of so many tokens has each latent so often, or more often [I]."""
        found = []
        for each in correlations:
            rows = self.rows / (1 + (self.document_tokens - 1) * each)
            rate_I = (self.rate_F[latent_I] * rows + 0.5) / (rows + 1)
            found.append(beta_binomial_tail(count_I, tokens, rate_I, each))
        return torch.stack(found).amax(0)


def beta_binomial_tail(count_I: Tensor, tokens: int, rate_I: Tensor, correlation: float) -> Tensor:
    """Return P(count or more of `tokens`) [I], float64.

    Args:
        rate_I: the mean share, above 0 and below 1.
        correlation: of two tokens, above 0 and below 1.
    """
    size = (1 - correlation) / correlation
    rate_I = rate_I.double().clamp(1e-12, 1 - 1e-12)
    a_I1, b_I1 = (rate_I * size)[:, None], ((1 - rate_I) * size)[:, None]
    found = []
    for part in torch.arange(len(rate_I)).split(max(1, (1 << 22) // (tokens + 1))):
        a, b = a_I1[part], b_I1[part]
        count_J = torch.arange(tokens + 1, dtype=torch.float64)
        log_IJ = _log_beta(count_J + a, tokens - count_J + b) - _log_beta(a, b)
        log_IJ = log_IJ - _log_beta(count_J + 1, tokens - count_J + 1) - math.log(tokens + 1)
        at_least_IJ = count_J >= count_I[part, None]
        found.append(torch.where(at_least_IJ, log_IJ, -math.inf).logsumexp(1).exp())
    return torch.cat(found).clamp(max=1) if found else rate_I


def _log_beta(a: Tensor, b: Tensor) -> Tensor:
    return a.lgamma() + b.lgamma() - (a + b).lgamma()
