"""The head of the language model as atlases use it: kept in the work folder, so that any rank can read it.

Letters: as core.types; f latents of the part; H width of the residual stream.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from sae_dist.atlas.describe.effects import top_logits, why_no_fit, why_none
from sae_dist.atlas.describe.lists import Ranked
from sae_dist.atlas.schema import WORK
from sae_dist.core.files import write_tensors
from sae_dist.llm.frozen import FrozenLlm

FILE = "head.safetensors"


@dataclass(frozen=True)
class Head:
    """The unembedding, and the mean Jacobian of the layers before it.

    Attributes:
        W_U_VH: without rows that stand for no token; None: there are no effects on logits.
        jacobian_HE: None: there are none through the layers between.
        is_direct: whether what is reconstructed is added to the residual stream, which the head reads.
    """

    W_U_VH: Tensor | None = None
    jacobian_HE: Tensor | None = None
    is_direct: bool = False

    @staticmethod
    def of(llm: FrozenLlm, width: int, tokens: int, jacobian_HE: Tensor | None) -> tuple["Head", str | None]:
        """Take the head of a model; also return why decoder rows have no direct effects, or None.

        Args:
            width: of decoder rows.
            tokens: in the tokenizer; further rows of the unembedding stand for none.
        """
        reason = why_none(llm.facts)
        if not llm.facts.causal or not llm.with_head:
            return Head(), reason or f"the head of {llm.facts.name} is not loaded"
        W_U_VH = llm.unembedding().detach()[:tokens]
        reason = reason or why_no_fit(width, W_U_VH.shape[1])
        if jacobian_HE is not None and why_no_fit(len(jacobian_HE), W_U_VH.shape[1]):
            jacobian_HE = None  # A model that projects what its last layer gives before the head.
        return Head(W_U_VH, jacobian_HE, reason is None), reason

    def write(self, folder: Path) -> None:
        """Write the head to the work folder of an atlas."""
        found = {"W_U": self.W_U_VH, "jacobian": self.jacobian_HE}
        tensors = {name: each.cpu().contiguous() for name, each in found.items() if each is not None}
        tensors["is_direct"] = torch.tensor(self.is_direct)
        (folder / WORK).mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WORK / FILE, tensors)

    @staticmethod
    def open(folder: Path) -> "Head":
        """Map what `write` wrote."""
        with safe_open(folder / WORK / FILE, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}
        return Head(found.get("W_U"), found.get("jacobian"), bool(found["is_direct"]))

    def effects(self, W_dec_fE: Tensor, num: int, device: torch.device) -> dict[str, Ranked]:
        """Return the lists `up` and `down`, `lens_up` and `lens_down` of some latents; those that exist.

        Args:
            num: how long each list is.
            device: that multiplies.
        """
        lists: dict[str, Ranked] = {}
        if self.W_U_VH is None:
            return lists
        if self.is_direct:
            lists["up"], lists["down"] = top_logits(W_dec_fE, self.W_U_VH, num, device=device)
        if self.jacobian_HE is not None:
            lists["lens_up"], lists["lens_down"] = top_logits(
                W_dec_fE, self.W_U_VH, num, self.jacobian_HE, device=device
            )
        return lists
