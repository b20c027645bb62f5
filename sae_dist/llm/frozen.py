"""The frozen LLM: runs packed chunks up to the last hook, or to the end with activations replaced.

A row holds the activation at the hook [kept, D]; for a transcoder it is followed by its target [kept, D + E].
In a grid of hooks the other hooks follow, each with its target, if they have one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.moving import moved
from sae_dist.core.types import LlmFacts, TokenChunk
from sae_dist.distributed.collectives import Axis
from sae_dist.llm.architecture import reader, text_part
from sae_dist.llm.batches import by_length, full_and_rest, in_reading_order
from sae_dist.llm.compiled import CompiledForward
from sae_dist.llm.facts import position_offset
from sae_dist.llm.fit import why_not_beside
from sae_dist.llm.hooks import Stop, attach, per_token
from sae_dist.llm.inputs import model_inputs
from sae_dist.llm.proof import check_together, difference_alone, rows_of_whole
from sae_dist.llm.tensor_parallel import check_not_split
from sae_dist.llm.weights import load_weights
from sae_dist.llm.zero3 import Partitioned


class FrozenLlm:
    """A language model whose weights never change. `FrozenLlm.load` makes one."""

    def __init__(
        self, model: Any, facts: LlmFacts, *, with_head: bool, partitioned: Partitioned | None = None
    ):
        self.model = model.eval().requires_grad_(False)
        self.facts, self.with_head = facts, with_head
        self.base = model.base_model
        self.reader = reader(self.base)
        self.whole = model if facts.causal else self.reader
        self.config = text_part(model.config)
        self.first_position = position_offset(model)
        weights = next(model.parameters())
        self.device, self.dtype = weights.device, weights.dtype
        self.partitioned = partitioned
        self.compiled: CompiledForward | None = None
        self.proof = "nothing was compared"

    @classmethod
    def load(
        cls,
        cfg: LlmConfig,
        facts: LlmFacts,
        *,
        device: torch.device,
        dtype: torch.dtype,
        with_head: bool,
        team: Axis | None = None,
        witness: bool = False,
    ) -> "FrozenLlm":
        """Load the weights: without head only the layers up to the last hook, with head the whole model.

        An encoder has no head; its whole model is its output. With `llm.random_init` no weight is read. The
        ranks of a `team` hold the model together, as `llm.shard` says; without a team this rank holds all of
        it.

        Args:
            witness: load the untouched model first, for a moment, if it fits, and compare rows with its rows.
                `proof` says what was compared.

        Raises:
            ConfigError: the weights do not load, or documents of one sequence see each other.
        """
        read = partial(cls._read, cfg, facts, device=device, dtype=dtype, team=team)
        untouched = None
        if with_head:
            llm = read(with_head=True, cut=False)
            llm.proof = "rows are those of the whole model"
            alone = rows_of_whole(llm)
        else:
            reason = why_not_beside(facts, dtype, device) if witness else "another rank compares them"
            if reason is None:
                whole = cls._read(cfg, facts, device=device, dtype=dtype, with_head=False, cut=False)
                untouched = rows_of_whole(whole)
                del whole
            llm, how, alone = cls._shortest(read, untouched, team)
            compared = f"were not compared with the whole model's ({reason})"
            compared = "are those of the whole model" if reason is None else compared
            llm.proof = f"rows {compared}; the model is {how}"
        check_together(llm, alone if untouched is None else untouched)
        if cfg.compile and not with_head:
            llm.compiled = CompiledForward(llm.base, facts.hooks)
        return llm

    @classmethod
    def _shortest(
        cls, read: Callable[..., "FrozenLlm"], untouched: Tensor | None, team: Axis | None
    ) -> tuple["FrozenLlm", str, Tensor]:
        """Load the model up to the last hook if its rows are then those of the whole model; else all of it.

        Returns:
            The model, how it was loaded, and its rows of documents alone.
        """
        try:
            llm = read(with_head=False, cut=True)
            why, rows = difference_alone(llm, untouched, team)
        except ConfigError as error:
            why, rows = str(error), None
        if why is None and rows is not None:
            return llm, "cut after the last hook", rows
        llm = read(with_head=False, cut=False)
        problem, rows = difference_alone(llm, untouched, team)
        if problem is not None or rows is None:
            raise ConfigError(f"llm.name={llm.facts.name}: {problem}; use llm.shard=none, or another model")
        return llm, f"not cut after the last hook, since then {why}", rows

    @classmethod
    def _read(
        cls, cfg: LlmConfig, facts: LlmFacts, *, with_head: bool, team: Axis | None = None, **how: Any
    ) -> "FrozenLlm":
        """Load the weights, by `load_weights`.

        Raises:
            ConfigError: the files lack some.
        """
        model, lacking, partitioned = load_weights(cfg, facts, with_head=with_head, team=team, **how)
        missing = sorted(key for key in lacking if "pooler" not in key)
        if missing:
            raise ConfigError(
                f"llm.name={cfg.name} has no weights for {len(missing)} parameters, {missing[0]} among "
                "them; give a folder with all of its weights"
            )
        return cls(model, facts, with_head=with_head, partitioned=partitioned)

    @torch.no_grad()
    def activations(self, chunk: TokenChunk) -> Tensor:
        """Compute the rows of the kept tokens, in reading order; one forward captures every hook."""
        if self.compiled:
            batches = list(self.compiled.batches(chunk))
        else:
            batches = list(full_and_rest(chunk) if self.facts.packed else by_length(chunk))
        padding = self.partitioned.most(len(batches)) - len(batches) if self.partitioned else 0
        run = self.compiled.run if self.compiled else self._capture
        parts = []
        for batch in batches:
            # The places of kept tokens, found on the host: a mask as an index is read there, after a wait.
            places = batch[3].flatten().nonzero().squeeze(1)
            ids, segment, position, kept = (moved(each, self.device) for each in (*batch[:3], places))
            parts.append(run(self.inputs(ids, segment, position)).flatten(0, 1).index_select(0, kept))
        self._pad(padding)
        rows = torch.cat(parts)
        return rows if self.facts.packed or self.compiled else in_reading_order(rows, batches)

    @torch.no_grad()
    def idle(self) -> None:
        """Join the forwards of a ZeRO-3 group in a round in which this rank has no chunk."""
        assert self.partitioned is not None
        self._pad(self.partitioned.most(0))

    def _pad(self, forwards: int) -> None:
        for _ in range(forwards):
            one = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
            self._capture(self.inputs(one, one, one))

    def logits(self, chunk: TokenChunk, replace: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Compute the next-token logits [N, S, V].

        `replace` maps rows to what replaces the activations (for a transcoder, the target). A transcoder's
        hook must be reached before its target (`facts.target_first`).
        """
        assert self.facts.causal and self.with_head
        return self._spliced(chunk, replace).logits

    def final_hidden(self, chunk: TokenChunk, replace: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Compute the last layer's output [N, S, H], with activations replaced as in `logits`."""
        assert not self.facts.causal and self.with_head
        return self._spliced(chunk, replace).last_hidden_state

    def unembedding(self) -> Tensor:
        """Return the head's weights, W_U [V, H]."""
        assert self.facts.causal and self.with_head
        return self.model.get_output_embeddings().weight

    @torch.no_grad()
    def _spliced(self, chunk: TokenChunk, replace: Callable[[Tensor], Tensor] | None) -> Any:
        tensors = (chunk.ids_NS, chunk.segment_NS, chunk.position_NS, chunk.keep_NS)
        ids, segment, position, keep = (moved(each, self.device) for each in tensors)
        inputs = self.inputs(ids, segment, position)
        if replace is None:
            return self.whole(**inputs)

        seen: list[Tensor] = []
        replaced: list[Tensor] = []

        def note(x: Tensor) -> Tensor:
            seen.append(per_token(x, ids.shape)[keep])
            return x

        def splice(x: Tensor) -> Tensor:
            # A module that runs several times in a forward, as a shared layer, is captured the first time.
            if replaced:
                return x
            spliced = per_token(x, ids.shape).clone()
            rows = torch.cat([*seen[:1], spliced[keep]], 1)
            spliced[keep] = replace(rows).to(x.dtype)
            replaced.append(spliced.view_as(x))
            return replaced[0]

        assert not self.facts.target_first
        *inner, last = self.facts.hooks
        handles = [attach(self.base, hook, note) for hook in inner]
        handles.append(attach(self.base, last, splice))
        try:
            return self.whole(**inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _capture(self, inputs: dict[str, Any]) -> Tensor:
        """Run up to the last hook and no further; return the hooks' tensors side by side, [N, S, columns]."""
        caught: dict[str, Tensor] = {}
        hooks = tuple(dict.fromkeys(self.facts.hooks))

        def catch(x: Tensor, hook: str) -> Tensor:
            x_NSD = per_token(x, inputs["input_ids"].shape)
            # A copy: the forward between the hooks might write into the tensor.
            caught.setdefault(hook, x_NSD.clone() if len(hooks) > 1 else x_NSD)
            if len(caught) == len(hooks):
                raise Stop
            return x

        handles = [attach(self.base, hook, partial(catch, hook=hook)) for hook in hooks]
        try:
            self.reader(**inputs)
        except Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
            if self.partitioned is not None:
                self.partitioned.release()
        found = torch.cat([caught[hook] for hook in self.facts.hooks], -1)
        check_not_split(self.facts, found.shape[-1])
        return found

    def inputs(self, ids: Tensor, segment: Tensor, position: Tensor) -> dict[str, Any]:
        """Return the arguments of a forward over documents that are laid out as in `TokenChunk`."""
        return model_inputs(
            ids,
            segment,
            position,
            self.reader,
            self.config,
            first_position=self.first_position,
            causal=self.facts.causal,
            packed=self.facts.packed,
            dtype=self.dtype,
        )

    def used(self, inputs: dict[str, Any]) -> Tensor:
        """Return the part of the output that is used: with head the model's own, else the hooks' tensors."""
        if not self.with_head:
            return self._capture(inputs)
        out = self.whole(**inputs)
        return out.logits if self.facts.causal else out.last_hidden_state
