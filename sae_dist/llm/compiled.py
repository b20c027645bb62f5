"""torch.compile of the truncated forward: hooks and batch shape are fixed, so that nothing recompiles."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sae_dist.core.types import TokenChunk
from sae_dist.llm.architecture import reader
from sae_dist.llm.hooks import attach


class CompiledForward:
    """A compiled forward of the base model, which is cut after the last hook; gives the hooks' tensors."""

    def __init__(self, base: nn.Module, hooks: tuple[str, ...]):
        self.base, self.hooks = base, hooks
        self.caught: dict[str, Tensor] = {}
        self.sequences: int | None = None
        for hook in dict.fromkeys(hooks):
            attach(base, hook, partial(self._catch, hook))
        self.run = torch.compile(self._run, dynamic=False)

    def _catch(self, hook: str, x_NSD: Tensor) -> Tensor:
        # A copy: the rest of the forward might write into the tensor.
        self.caught[hook] = x_NSD.clone()
        return x_NSD

    def _run(self, inputs: dict[str, Any]) -> Tensor:
        reader(self.base)(**inputs)
        # Emptied: a tensor left in the dict would make torch recompile.
        caught = {hook: self.caught.pop(hook) for hook in dict.fromkeys(self.hooks)}
        return torch.cat([caught[hook] for hook in self.hooks], -1)

    def batches(self, chunk: TokenChunk) -> Iterator[tuple[Tensor, ...]]:
        """Yield ids, segments, positions and kept places, as many sequences each as the first chunk had."""
        self.sequences = self.sequences or len(chunk.ids_NS)
        tensors = (chunk.ids_NS, chunk.segment_NS, chunk.position_NS, chunk.keep_NS)
        for first in range(0, len(chunk.ids_NS), self.sequences):
            parts = [each[first : first + self.sequences] for each in tensors]
            short = self.sequences - len(parts[0])
            yield tuple(torch.cat([part, part.new_zeros(short, part.shape[1])]) for part in parts)
