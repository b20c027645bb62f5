"""The untouched forward of a prompt: what goes into each place and comes out, and what the logits are.

Letters: as core.types.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.graph.freeze import Frozen
from sae_dist.graph.sites import Site
from sae_dist.interpret.model import LanguageModel
from sae_dist.llm.hooks import attach as hook_on
from sae_dist.llm.hooks import per_token

ROUNDING = 1e-3
"""How far logits may be from the head's product, relative to the largest: rounding alone."""


@dataclass(frozen=True)
class Head:
    """The matrix that makes logits of the last norm's output.

    Attributes:
        W_VD: times what the model multiplies all logits by.
        softcap: what the model bounds logits by after the product; None: nothing.
    """

    W_VD: Tensor
    bias_V: Tensor | None
    softcap: float | None

    def rows(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and biases of a few tokens, each less the mean of all tokens' [T, D], [T]."""
        W_TD = self.W_VD[tokens] - self.W_VD.mean(0)
        if self.bias_V is None:
            return W_TD, W_TD.new_zeros(len(tokens))
        return W_TD, self.bias_V[tokens] - self.bias_V.mean()


@dataclass
class Clean:
    """The tensors that passed each place in the untouched forward of one prompt.

    Attributes:
        sites: the places that were passed.
        inputs: at each site's hook [S, D]; None: it has no transcoder.
        outputs: at each site's target [S, E].
        final_D: what the head multiplies, at the last position.
        logits_V: as the model gives them, at the last position.
    """

    frozen: Frozen
    head: Head
    embedding_SD: Tensor
    sites: list[Site]
    inputs: list[Tensor | None]
    outputs: list[Tensor]
    final_D: Tensor
    logits_V: Tensor


@dataclass
class _Caught:
    """The tensors of one forward, by number of the site."""

    inputs: dict[int, Tensor] = field(default_factory=dict)
    outputs: dict[int, Tensor] = field(default_factory=dict)
    embedding: Tensor | None = None
    final: Tensor | None = None


def clean_pass(sites: Sequence[Site], lm: LanguageModel, ids_S: Tensor) -> Clean:
    """Run a model over a prompt and keep what the graph needs of it.

    Raises:
        ConfigError: a place is passed several times, or its target before its hook, or logits are another
            function of the last norm's output than a product.
    """
    replaced = [path for path, way in (site.target.split(":") for site in sites) if way == "out"]
    caught, frozen = _Caught(), Frozen(lm.base, replaced)
    shape = (1, len(ids_S))
    with torch.no_grad(), ExitStack() as stack:
        stack.enter_context(frozen.recording())
        for number, site in enumerate(sites):
            _catch(stack, lm, number, site, caught, shape)
        _catch_ends(stack, lm, caught)
        logits_V = lm.model(**lm.as_trained(ids_S), use_cache=False).logits[0, -1].detach()
    # Layers for images are not passed by text.
    passed = [number for number in range(len(sites)) if number in caught.outputs]
    lost = [site.target for number, site in enumerate(sites) if site.dictionary and number not in passed]
    if lost:
        raise ConfigError(f"target_hook={lost[0]} is not passed in a forward of {lm.name}")
    if caught.embedding is None or caught.final is None:
        raise ConfigError(f"{lm.name} does not call its embedding or its head; no graph can be drawn of it")
    final_D = caught.final[0, -1]
    return Clean(
        frozen=frozen,
        head=_head(lm, final_D, logits_V),
        embedding_SD=caught.embedding[0],
        sites=[sites[number] for number in passed],
        inputs=[caught.inputs.get(number) for number in passed],
        outputs=[caught.outputs[number] for number in passed],
        final_D=final_D,
        logits_V=logits_V,
    )


def _catch(
    stack: ExitStack, lm: LanguageModel, number: int, site: Site, caught: _Caught, shape: tuple[int, int]
) -> None:
    def note_input(x: Tensor) -> Tensor:
        caught.inputs[number] = per_token(x, shape)[0].detach().clone()  # models add in place
        return x

    def note_output(y: Tensor) -> Tensor:
        if number in caught.outputs:
            raise ConfigError(
                f"target_hook={site.target} is passed twice in a forward; choose another module"
            )
        if site.hook is not None and number not in caught.inputs:
            raise ConfigError(f"{lm.name} reaches target_hook={site.target} before hook={site.hook}")
        caught.outputs[number] = per_token(y, shape)[0].detach().clone()
        return y

    if site.hook is not None:
        stack.callback(hook_on(lm.base, site.hook, note_input).remove)
    stack.callback(hook_on(lm.base, site.target, note_output, "target_hook").remove)


def _catch_ends(stack: ExitStack, lm: LanguageModel, caught: _Caught) -> None:
    """Catch the embedding's output and the head's input."""

    def embedded(_module: Any, _args: Any, output: Tensor) -> None:
        caught.embedding = output.detach().clone()

    def read(_module: Any, args: tuple[Tensor, ...]) -> None:
        caught.final = args[0].detach().clone()

    stack.callback(lm.model.get_input_embeddings().register_forward_hook(embedded).remove)
    stack.callback(lm.model.get_output_embeddings().register_forward_pre_hook(read).remove)


def _head(lm: LanguageModel, final_D: Tensor, logits_V: Tensor) -> Head:
    """Return the head, with the factor or the softcap that the model applies after it.

    Raises:
        ConfigError: the logits are another function of its product.
    """
    head = lm.model.get_output_embeddings()
    W_VD, bias_V = head.weight.detach(), getattr(head, "bias", None)
    bias_V = None if bias_V is None else bias_V.detach()
    plain_V = W_VD @ final_D if bias_V is None else W_VD @ final_D + bias_V
    logits_V = logits_V[: len(plain_V)]

    def same(found_V: Tensor) -> bool:
        return float((found_V - logits_V).abs().max()) <= ROUNDING * float(logits_V.abs().max())

    cap = getattr(lm.model.config.get_text_config(), "final_logit_softcapping", None)
    if same(plain_V):
        return Head(W_VD, bias_V, None)
    if cap and same(cap * torch.tanh(plain_V / cap)):
        return Head(W_VD, bias_V, float(cap))
    factor = (plain_V @ logits_V) / (plain_V @ plain_V)
    if same(factor * plain_V):
        return Head(factor * W_VD, None if bias_V is None else factor * bias_V, None)
    raise ConfigError(
        f"logits of {lm.name} are no multiple of its head's product; no graph can be drawn of them"
    )
