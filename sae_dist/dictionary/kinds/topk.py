"""The TopK kind: the k largest codes of each row, those above zero (Gao et al. 2024, arXiv 2406.04093)."""

from torch import Tensor

from sae_dist.core.types import Codes
from sae_dist.dictionary.selecting import Found, SelectedDictionary
from sae_dist.dictionary.selection import select


class TopK(SelectedDictionary):
    """A dictionary with code = relu(topk_k(W_enc (x - b_dec) + b_enc))."""

    form = "topk"

    def select(self, x_BD: Tensor, dead_F: Tensor | None) -> tuple[Codes, Found | None]:
        """Select the k best latents of each row, over all shards."""
        found, dead = self.candidates(x_BD, min(self.cfg.k, self.F), dead_F)
        return select(*found, self.cfg.k, self.shard, self.kernels), dead
