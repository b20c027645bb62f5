"""The local replacement model of a prompt: a linear map from latents, errors and tokens to what reads them.

Every place with a transcoder has in its stead: decoder rows times codes, plus what the transcoder does not
explain, plus a skip connection's product. Attention patterns and norms are those of the prompt.

Letters: as core.types; here P are all pairs of a position and a latent that fires there, by place; C the
sources: those, an error for each place and position, and a token for each position.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from sae_dist.graph.active import Active
from sae_dist.graph.clean import Clean, clean_pass
from sae_dist.graph.sites import Site
from sae_dist.interpret.counted import outliers, special_tokens
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel
from sae_dist.llm.hooks import Stop, per_token
from sae_dist.llm.hooks import attach as hook_on


@dataclass(frozen=True)
class Values:
    """The values of targets for N settings of the sources: pre-activations [N, P], logits [N, T]."""

    pre_NP: Tensor
    logits_NT: Tensor


@dataclass(frozen=True)
class _Opened:
    """A forward of copies of the prompt whose gradients can be asked for."""

    leaves: list[Tensor]
    inputs: list[Tensor | None]
    final_ND: Tensor


class Replacement:
    """The local replacement model of one prompt.

    At special tokens and outliers, which no transcoder was trained on, outputs are errors as a whole.

    Attributes:
        ids_S: the prompt.
        tokens_T: the tokens whose logits are targets.
        active: the latents of each place; None: it has no transcoder.
        errors: what transcoders do not explain, of each place [S, E]; without one, all of its output.
    """

    def __init__(self, sites: Sequence[Site], lm: LanguageModel, ids_S: Tensor):
        """Run the prompt through the untouched model.

        Raises:
            ConfigError: see `graph.clean.clean_pass`.
        """
        self.lm, self.ids_S = lm, ids_S
        with torch.no_grad():
            self.clean: Clean = clean_pass(sites, lm, ids_S)
            self.sites = self.clean.sites
            self.active = [
                None if site.dictionary is None or x_SD is None else self._active(site.dictionary, x_SD)
                for site, x_SD in zip(self.sites, self.clean.inputs, strict=True)
            ]
            self.errors = [self._error(number) for number in range(len(self.sites))]
        self.tokens_T = torch.zeros(0, dtype=torch.int64, device=ids_S.device)
        self._opened: _Opened | None = None

    def _active(self, dictionary: Dictionary, x_SD: Tensor) -> Active:
        special_S = special_tokens(dictionary, self.lm, self.ids_S)
        return Active.of(dictionary, x_SD, outliers(dictionary, special_S, x_SD)[2])

    def _error(self, number: int) -> Tensor:
        y_SE, active = self.clean.outputs[number], self.active[number]
        if active is None:
            return y_SE
        ones = torch.ones_like(active.code_P)[None]
        known_SE = active.write(ones)[0] + self._constant(active)
        return y_SE - known_SE - self._skipped(active, self.clean.inputs[number])

    def _constant(self, active: Active) -> Tensor:
        return active.used_S1 * active.b_dec_E

    def _skipped(self, active: Active, x_NSD: Tensor | None) -> Tensor | float:
        if active.W_skip_ED is None or x_NSD is None:
            return 0.0
        return active.used_S1 * (x_NSD @ active.W_skip_ED.T)

    @property
    def num_latents(self) -> int:
        """The number P of pairs of a position and a latent that fires there."""
        return sum(len(each.code_P) for each in self.active if each is not None)

    @property
    def num_sources(self) -> int:
        """The number C of sources: latents, then errors by place and position, then tokens by position."""
        return self.num_latents + (len(self.sites) + 1) * len(self.ids_S)

    @cached_property
    def code_P(self) -> Tensor:
        """The codes of all latents on the prompt."""
        return torch.cat([each.code_P for each in self.active if each is not None])

    @cached_property
    def _parts(self) -> list[slice]:
        """The columns of each place's latents."""
        found, first = [], 0
        for each in self.active:
            number = 0 if each is None else len(each.code_P)
            found.append(slice(first, first + number))
            first += number
        return found

    @cached_property
    def _head_rows(self) -> tuple[Tensor, Tensor]:
        return self.clean.head.rows(self.tokens_T)

    def run(self, scale_NC: Tensor) -> Values:
        """Return what targets are when sources are multiplied by factors; 1 is the prompt itself."""
        N, S, first = len(scale_NC), len(self.ids_S), self.num_latents
        written = []
        for number, active in enumerate(self.active):
            factor_NS1 = scale_NC[:, first + number * S : first + (number + 1) * S, None]
            y_NSE = factor_NS1 * self.errors[number]
            if active is not None:
                y_NSE = y_NSE + active.write(scale_NC[:, self._parts[number]]) + self._constant(active)
            written.append(y_NSE)
        tokens_NSD = scale_NC[:, -S:, None] * self.clean.embedding_SD
        with torch.no_grad():
            inputs, final_ND = self._forward(tokens_NSD, written)
            return self._values(inputs, final_ND, N)

    def _values(self, inputs: Sequence[Tensor | None], final_ND: Tensor, N: int) -> Values:
        pre = [
            active.read(x_NSD)
            for active, x_NSD in zip(self.active, inputs, strict=True)
            if active is not None and x_NSD is not None
        ]
        W_TD, bias_T = self._head_rows
        pre_NP = torch.cat(pre, 1) if pre else final_ND.new_zeros(N, 0)
        return Values(pre_NP, final_ND @ W_TD.T + bias_T)

    def _forward(self, tokens_NSD: Tensor, written: Sequence[Tensor]) -> tuple[list[Tensor | None], Tensor]:
        """Run the model with other embeddings and outputs of places.

        Returns:
            What reaches each place's hook [N, S, D], and the head at the last position [N, D].
        """
        N, S, _ = tokens_NSD.shape
        inputs: list[Tensor | None] = [None] * len(self.sites)
        with ExitStack() as stack:
            stack.enter_context(self.clean.frozen.replaying())
            embedding = self.lm.model.get_input_embeddings()
            # Copies, since models add in place.
            handle = embedding.register_forward_hook(lambda _module, _args, _output: tokens_NSD.clone())
            stack.callback(handle.remove)
            final: list[Tensor] = []
            handle = self.lm.model.get_output_embeddings().register_forward_pre_hook(partial(_end, final))
            stack.callback(handle.remove)
            for number in range(len(self.sites)):
                self._splice(stack, number, inputs, written[number], (N, S))
            with suppress(Stop):
                self.lm.model(**_copies(self.lm.as_trained(self.ids_S), N), use_cache=False)
        return inputs, final[0][:, -1]

    def _splice(
        self,
        stack: ExitStack,
        number: int,
        inputs: list[Tensor | None],
        written_NSE: Tensor,
        shape: tuple[int, int],
    ) -> None:
        site, active = self.sites[number], self.active[number]

        def note(x: Tensor) -> Tensor:
            inputs[number] = per_token(x, shape).clone()
            return x

        def replace(y: Tensor) -> Tensor:
            found = written_NSE if active is None else written_NSE + self._skipped(active, inputs[number])
            return found.clone().view_as(y)

        if site.hook is not None:
            stack.callback(hook_on(self.lm.base, site.hook, note).remove)
        stack.callback(hook_on(self.lm.base, site.target, replace, "target_hook").remove)

    @contextmanager
    def opened(self, copies: int) -> Iterator[None]:
        """Prepare `rows` of so many targets at once, in the body."""
        with torch.no_grad():
            written = [
                y_SE - self._skipped(active, x_SD) if active is not None else y_SE
                for y_SE, active, x_SD in zip(self.clean.outputs, self.active, self.clean.inputs, strict=True)
            ]
        leaves = [
            each.expand(copies, *each.shape).clone().requires_grad_()
            for each in (self.clean.embedding_SD, *written)
        ]
        with _without_gradients(self.lm.model), torch.enable_grad():
            inputs, final_ND = self._forward(leaves[0], leaves[1:])
        self._opened = _Opened(leaves, inputs, final_ND)
        try:
            yield
        finally:
            self._opened = None

    def rows(self, targets_n: Tensor) -> Tensor:
        """Return what each source adds to some targets [n, C]: gradient times source.

        Args:
            targets_n: numbers of latents, 0 to P - 1; or P + the number of a logit. At most as many as
                `opened` prepared for.
        """
        opened = self._opened
        assert opened is not None and len(targets_n) <= len(opened.final_ND)
        outputs, gradients = self._injected(opened, targets_n)
        found = torch.autograd.grad(
            outputs, opened.leaves, gradients, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        grad_NSD, *grads = found
        parts = [
            active.share(grad) for active, grad in zip(self.active, grads, strict=True) if active is not None
        ]
        errors = [(grad * error_SE).sum(-1) for grad, error_SE in zip(grads, self.errors, strict=True)]
        tokens = (grad_NSD * self.clean.embedding_SD).sum(-1)
        return torch.cat([*parts, *errors, tokens], 1)[: len(targets_n)]

    def _injected(self, opened: _Opened, targets_n: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return tensors to go back from and gradients there, of target i in copy i."""
        outputs, gradients = [], []
        wanted = targets_n.tolist()
        for number, (active, x_NSD) in enumerate(zip(self.active, opened.inputs, strict=True)):
            if active is None or x_NSD is None or not x_NSD.requires_grad:
                continue
            part, grad = self._parts[number], torch.zeros_like(x_NSD)
            for copy, target in enumerate(wanted):
                if part.start <= target < part.stop:
                    pair = target - part.start
                    grad[copy, active.position_P[pair]] = active.W_enc_UD[active.row_P[pair]]
            outputs.append(x_NSD)
            gradients.append(grad)
        W_TD, _ = self._head_rows
        grad = torch.zeros_like(opened.final_ND)
        for copy, target in enumerate(wanted):
            if target >= self.num_latents:
                grad[copy] = W_TD[target - self.num_latents]
        return [*outputs, opened.final_ND], [*gradients, grad]


def _end(found: list[Tensor], _module: Any, args: tuple[Tensor, ...]) -> None:
    """Keep what the head would multiply, and end the forward: no logits of all copies are needed."""
    found.append(args[0])
    raise Stop


def _copies(arguments: Mapping[str, Any], N: int) -> dict[str, Any]:
    """Return a forward's arguments for copies of its one sequence."""

    def wide(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: wide(each) for key, each in value.items()}
        return value.expand(N, *value.shape[1:]) if isinstance(value, Tensor) else value

    return {key: wide(value) for key, value in arguments.items()}


@contextmanager
def _without_gradients(model: Any) -> Iterator[None]:
    """Keep a model's own weights out of the graph in the body."""
    learning = [each for each in model.parameters() if each.requires_grad]
    try:
        for each in learning:
            each.requires_grad_(False)
        yield
    finally:
        for each in learning:
            each.requires_grad_(True)
