"""The direct effect of activations on the next token's logits: past all later modules, not through them.

m_s = logit of the token after s, less the mean of all logits at s. Its gradient with respect to the
activation, with the outputs of all modules inside of layers held fixed, is that through the sums of the
residual stream, the final norm and the head alone. A latent's direct effect is this gradient times what the
latent adds: to first order what m_s loses without it, in nats. Letters: as core.types; H width.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sae_dist.interpret.session import Session
from sae_dist.llm.architecture import text_part
from sae_dist.llm.cut import layers_of
from sae_dist.llm.hooks import attach, per_token

PASSING = (nn.Dropout, nn.Identity)
"""Modules inside of layers that change nothing at inference."""


@dataclass(frozen=True)
class Direct:
    """The gradients of a document's logits along the direct path.

    Attributes:
        grad_SE: of each token's m with respect to what the dictionary reconstructs; None: there is no path.
        next_S: the token that each m is of; after the last token, the one that the model finds likeliest.
        reason: why something is None.
    """

    grad_SE: Tensor | None = None
    next_S: Tensor | None = None
    reason: str | None = None


def direct(session: Session, ids_S: Tensor) -> Direct:
    """Compute the gradients of the next tokens' logits along the direct path."""
    lm = session.lm
    if not lm.causal:
        return Direct(reason=f"{lm.name} is an encoder: it predicts no next token")
    if lm.model.get_output_embeddings() is None:
        return Direct(reason=f"{lm.name} was loaded without a language head")
    hook = session.hooks[list(session.hooks)[-1]]
    layers = _layers(lm, hook)
    if layers is None:
        return Direct(reason=f"the layers of {lm.name} were not found")
    own = lm.base.get_submodule(hook.split(":")[0]) if hook.endswith(":out") else None
    leaves: list[Tensor] = []

    def leaf(y: Tensor) -> Tensor:
        if leaves:
            return y  # a module that runs several times in a forward counts once
        leaves.append(y.detach().requires_grad_())
        return leaves[0]

    with ExitStack() as stack, torch.enable_grad():
        for layer in layers:
            for child in layer.children():
                if child is not own and not isinstance(child, PASSING):
                    _hold(child, stack)
        stack.callback(attach(lm.base, hook, leaf).remove)
        logits_SV = lm.model(**lm.as_trained(ids_S)).logits[0].float()
        next_S = torch.cat([ids_S[1:].to(logits_SV.device), logits_SV[-1:].argmax(1)])
        m_S = logits_SV.gather(1, next_S[:, None])[:, 0] - logits_SV.mean(1)
        grad = torch.autograd.grad(m_S.sum(), leaves, allow_unused=True)[0] if m_S.requires_grad else None
    if grad is None or not bool((grad != 0).any()):
        why = (
            f"what {hook} gives reaches the logits through other modules only: it is not added to the "
            "residual stream"
        )
        return Direct(next_S=next_S, reason=why)
    return Direct(per_token(grad, (1, len(ids_S)))[0].float(), next_S)


def _layers(lm: Any, hook: str) -> list[nn.Module] | None:
    """Return the layers of the list that the hook is in, or of the list with the model's number of layers."""
    place = layers_of([hook])
    if place is not None:
        found = lm.base.get_submodule(place[0])
        return list(found) if isinstance(found, nn.ModuleList) else None
    depth = getattr(text_part(lm.model.config), "num_hidden_layers", 0)
    lists = (each for each in lm.base.modules() if isinstance(each, nn.ModuleList))
    return next((list(each) for each in lists if len(each) == depth), None)


def _hold(module: nn.Module, stack: ExitStack) -> None:
    """Let no gradient pass through a module: not into it, so that no graph is made, nor out of it."""
    before = module.register_forward_pre_hook(
        lambda _module, args, kwargs: (_detached(args), _detached(kwargs)), with_kwargs=True
    )
    stack.callback(before.remove)
    after = module.register_forward_hook(lambda _module, _args, output: _detached(output))
    stack.callback(after.remove)


def _detached(value: Any) -> Any:
    """Return the same without gradients, in tuples, lists and dicts, too."""
    if isinstance(value, Tensor):
        return value.detach()
    if type(value) in (tuple, list):
        return type(value)(_detached(each) for each in value)
    if type(value) is dict:
        return {key: _detached(each) for key, each in value.items()}
    return value
