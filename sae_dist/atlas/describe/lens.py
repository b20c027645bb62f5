"""The mean Jacobian of the layers between a hook and the final norm, by backward passes of the frozen LLM.

    J = mean over positions p of  sum over p' >= p of  d h_final[p'] / d h_hook[p]     [H, E]

where p is a kept token that is not among a document's first ones, p' is of the same document, h_final is what
the last layer gives, and h_hook what the dictionary reconstructs. With h_final summed over p', one backward
pass for each of H numbers has all p at once: the model is causal, and documents do not see each other.

Letters: as core.types; H width of what the last layer gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_tensors
from sae_dist.core.moving import moved
from sae_dist.core.types import LlmFacts, TokenChunk
from sae_dist.llm.batches import by_length, full_and_rest
from sae_dist.llm.cut import layers_of
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.hooks import Stop, attach, per_token

SKIPPED = 16
"""Tokens at the beginning of a document that are no p: the first ones are like no others."""
TOKENS = 2048
"""Tokens in a forward, whose graph is held."""
GRID = 2.0**-22
"""Sums are rounded to its multiples; so long as they are below 2^31, adding them is exact in any order."""


@dataclass(frozen=True)
class LensSum:
    """The sum of Jacobians over positions; sums of several chunks are added with `+`, in any order.

    Attributes:
        sum_HE: float64, multiples of GRID.
        positions: how many positions it is over; prompts: of how many documents.
    """

    sum_HE: Tensor
    positions: int
    prompts: int

    def __add__(self, other: "LensSum") -> "LensSum":
        """Add the positions of another sum, or other rows of the Jacobians at the same."""
        if not self.sum_HE.numel() or not other.sum_HE.numel():
            return other if other.sum_HE.numel() else self
        return LensSum(
            self.sum_HE + other.sum_HE, self.positions + other.positions, self.prompts + other.prompts
        )

    def mean_HE(self) -> Tensor:
        """Return the mean Jacobian (float64).

        Raises:
            ConfigError: it is over no positions, or numbers are not finite.
        """
        if self.positions == 0:
            raise ConfigError(f"the text has no document of more than {SKIPPED} tokens; give longer ones")
        if not bool(torch.isfinite(self.sum_HE).all()):
            raise ConfigError("gradients of the language model are not finite; use llm.dtype=float32")
        return self.sum_HE / self.positions

    def write(self, path: Path) -> None:
        """Write the sum as a safetensors file, complete or absent."""
        counts = torch.tensor([self.positions, self.prompts])
        write_tensors(path, {"sum": self.sum_HE, "counts": counts})

    @staticmethod
    def read(path: Path) -> "LensSum":
        """Read what `write` wrote."""
        from safetensors.torch import load_file

        found = load_file(path)
        positions, prompts = found["counts"].tolist()
        return LensSum(found["sum"], positions, prompts)


def why_no_lens(llm: FrozenLlm) -> str | None:
    """Explain why the layers between have no mean Jacobian here; None: they have one."""
    facts = llm.facts
    if not facts.causal:
        return f"{facts.name} is an encoder: tokens before a latent's depend on it, too"
    if not llm.with_head:
        return f"the layers of {facts.name} after {_hook(facts)} are not loaded"
    if llm.partitioned is not None:
        return f"the weights of {facts.name} are divided among ranks"
    if _final(llm) is None:
        return f"the layers of {facts.name} were not found"
    return None


def fit(
    llm: FrozenLlm,
    chunk: TokenChunk,
    *,
    skip: int = SKIPPED,
    tokens: int = TOKENS,
    share: tuple[int, int] = (0, 1),
) -> LensSum:
    """Sum the Jacobians at the positions of a chunk; costs a forward and H backward passes after the hook.

    Args:
        llm: of which `why_no_lens` says nothing.
        skip: tokens at the beginning of each document that are left out; special ones count.
        tokens: in a forward, at most, if sequences are not longer.
        share: r and n: compute every n-th row of the Jacobian from the r-th on; the others are 0. The first
            share counts the positions.

    Raises:
        ConfigError: the model gives no gradients, or the hook is behind the last layer.
    """
    total = None
    positions, prompts = 0, 0
    for ids, segment, position, keep in _batches(llm, chunk, tokens):
        used = keep & (position >= skip)
        if not bool(used.any()):
            continue
        on_device = [moved(each, llm.device) for each in (ids, segment, position, used)]
        found = _sum(llm, on_device, share)
        total = found if total is None else total + found
        positions += int(used.sum())
        number = segment + torch.arange(len(segment))[:, None] * (int(segment.max()) + 1)
        prompts += len(number[used].unique())
    if total is None:
        total = torch.zeros(0, 0, dtype=torch.float64)
    if share[0] > 0:
        positions = prompts = 0
    return LensSum(torch.round(total / GRID) * GRID, positions, prompts)


def _batches(llm: FrozenLlm, chunk: TokenChunk, tokens: int) -> Iterator[tuple[Tensor, ...]]:
    """Yield ids, segments, positions and kept places of a few sequences at a time."""
    for batch in full_and_rest(chunk) if llm.facts.packed else by_length(chunk):
        step = max(1, tokens // batch[0].shape[1])
        for first in range(0, len(batch[0]), step):
            yield tuple(each[first : first + step] for each in batch[:4])


def _sum(llm: FrozenLlm, batch: list[Tensor], share: tuple[int, int]) -> Tensor:
    """Return the sum of Jacobians at the used positions [H, E], float64 on the host."""
    ids, segment, position, used = batch
    with torch.enable_grad():
        leaf, h_NSH = _forward(llm, ids, segment, position)
        if not h_NSH.requires_grad:
            raise _no_gradients(llm, "nothing after the hook depends on it")
        rows = torch.zeros(h_NSH.shape[-1], leaf.shape[-1], dtype=torch.float64)
        numbers = range(share[0], len(rows), share[1])
        real = (segment > 0).to(h_NSH.dtype)
        for number in numbers:
            ones = torch.zeros_like(h_NSH)
            ones[..., number] = real
            try:
                [grad] = torch.autograd.grad(h_NSH, leaf, ones, retain_graph=number != numbers[-1])
            except RuntimeError as error:
                raise _no_gradients(llm, str(error).splitlines()[0]) from error
            rows[number] = per_token(grad, ids.shape)[used].double().sum(0)
    return rows


def _forward(llm: FrozenLlm, ids: Tensor, segment: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
    """Run up to the last layer; return the hook's tensor, from which gradients are taken, and the layer's."""
    leaves: list[Tensor] = []
    found: list[Tensor] = []

    def leaf(x: Tensor) -> Tensor:
        if leaves:
            return x  # a module that runs several times in a forward is captured the first time
        leaves.append(x.detach().requires_grad_())
        # A copy goes on: the model may write into what it is given.
        return leaves[0].clone()

    def final(x: Tensor) -> Tensor:
        found.append(per_token(x, ids.shape))
        raise Stop

    last = _final(llm)
    assert last is not None
    handles = [attach(llm.base, _hook(llm.facts), leaf), attach(llm.base, last, final)]
    try:
        llm.reader(**llm.inputs(ids, segment, position))
    except Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if not leaves or not found:
        raise _no_gradients(llm, "the last layer comes before the hook")
    return leaves[0], found[0]


def _hook(facts: LlmFacts) -> str:
    """Return where the dictionary's reconstructions are."""
    return facts.target_hook or facts.hook


def _final(llm: FrozenLlm) -> str | None:
    """Return the hook of what the last layer gives."""
    place = layers_of([_hook(llm.facts)])
    depth = getattr(llm.config, "num_hidden_layers", 0)
    for name, module in llm.base.named_modules():
        if isinstance(module, nn.ModuleList):
            if name == place[0] if place else len(module) == depth:
                return f"{name}.{len(module) - 1}:out"
    return None


def _no_gradients(llm: FrozenLlm, why: str) -> ConfigError:
    return ConfigError(
        f"llm.name={llm.facts.name}: no Jacobian of the layers after {_hook(llm.facts)} ({why}); "
        "choose another hook, or leave out the lens"
    )
