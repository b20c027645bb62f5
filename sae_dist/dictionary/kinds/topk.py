"""TopK: exactly k codes per row (Gao et al. 2024, arXiv 2406.04093)."""

from torch import Tensor

from sae_dist.core.types import Codes
from sae_dist.dictionary.selected import SelectedDictionary
from sae_dist.dictionary.selection import select


class Kind(SelectedDictionary):
    """code = relu(topk_k(W_enc (x - b_dec) + b_enc))."""

    def select(self, x_BD: Tensor) -> Codes:
        """The k best latents of each row, over all shards."""
        k = self.cfg.k
        val, idx = self.kernels.encode_topk(x_BD, self.W_enc, self.b_enc, min(k, self.F))
        return select(val, idx, k, self.shard, self.kernels)
