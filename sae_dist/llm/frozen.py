"""The frozen LLM: runs packed chunks up to the last hook, or to the end with activations replaced.

A row holds the activation at the hook [kept, D]; for a transcoder it is followed by its target [kept, D + E],
in a grid of hooks by the activations at the other hooks.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts, TokenChunk
from sae_dist.distributed.collectives import Axis
from sae_dist.llm.compiled import CompiledForward
from sae_dist.llm.facts import last_layer, position_offset
from sae_dist.llm.hooks import Stop, attach
from sae_dist.llm.hub import cannot_pack, loading
from sae_dist.llm.masks import packed_masks
from sae_dist.llm.random_init import random_model
from sae_dist.llm.tensor_parallel import check_not_split, load_split
from sae_dist.llm.zero3 import Partitioned, load_partitioned

# Mean relative difference of a packed segment from the same segment alone. Rounding stays far below it, and
# attention that crosses segments far above.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
PROOF_LENGTHS = (5, 7, 3)
LONGEST_PROOF = 512
TRIM_BELOW = 0.75


class FrozenLlm:
    """A language model whose weights never change. `FrozenLlm.load` makes one."""

    def __init__(
        self, model: Any, facts: LlmFacts, *, with_head: bool, partitioned: Partitioned | None = None
    ):
        self.model = model.eval().requires_grad_(False)
        self.facts, self.with_head = facts, with_head
        self.base = model.base_model
        self.config = model.config.get_text_config()
        self.first_position = position_offset(model)
        weights = next(model.parameters())
        self.device, self.dtype = weights.device, weights.dtype
        self.partitioned = partitioned
        self.compiled: CompiledForward | None = None

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
    ) -> "FrozenLlm":
        """Load the weights: without head only the layers up to the last hook, with head the whole model.

        An encoder has no head; its whole model is its output. With `llm.random_init` no weight is read. The
        ranks of a `team` hold the model together, as `llm.shard` says; without a team this rank holds all of
        it.

        Raises:
            ConfigError: the weights do not load, or the model lets packed documents see each other.
        """
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        auto: Any = AutoModelForCausalLM if with_head and facts.causal else AutoModel
        remote = cfg.trust_remote_code
        with loading(cfg.name):
            config = AutoConfig.from_pretrained(facts.path, trust_remote_code=remote)
            if not with_head:
                _trim(config.get_text_config(), facts.hooks)
            how: dict[str, Any] = {
                "dtype": dtype,
                "attn_implementation": cfg.attn,
                "trust_remote_code": remote,
            }
            model: Any
            partitioned = None
            if cfg.random_init:
                model, lacking = random_model(auto, config, **how).to(device), set()
            elif team is None:
                model, report = auto.from_pretrained(
                    facts.path, config=config, output_loading_info=True, **how
                )
                model, lacking = model.to(device), report["missing_keys"]
            elif cfg.shard == "tp":
                model, lacking = load_split(auto, config, facts.path, team=team, device=device, **how)
            else:
                model, lacking = load_partitioned(
                    auto, config, facts.path, team=team, device=device, offload=cfg.offload, **how
                )
                partitioned = Partitioned(model.base_model, team)
            model.config.use_cache = False
            llm = cls(model, facts, with_head=with_head, partitioned=partitioned)
        missing = sorted(key for key in lacking if "pooler" not in key)
        if missing:
            raise ConfigError(
                f"llm.name={cfg.name} has no weights for {len(missing)} parameters, {missing[0]} among them; "
                "give a folder with all of its weights"
            )
        llm._prove_packing()
        if cfg.compile and not with_head:
            llm.compiled = CompiledForward(llm.base, facts.hooks)
        return llm

    @torch.no_grad()
    def activations(self, chunk: TokenChunk) -> Tensor:
        """Compute the rows of the kept tokens, in reading order; one forward captures every hook."""
        batches = list(self.compiled.batches(chunk) if self.compiled else full_and_rest(chunk))
        padding = self.partitioned.most(len(batches)) - len(batches) if self.partitioned else 0
        run = self.compiled.run if self.compiled else self._capture
        parts = []
        for batch in batches:
            ids, segment, position, keep = (each.to(self.device) for each in batch)
            parts.append(run(self._inputs(ids, segment, position))[keep])
        self._pad(padding)
        return torch.cat(parts)

    @torch.no_grad()
    def idle(self) -> None:
        """Join the forwards of a ZeRO-3 group in a round in which this rank has no chunk."""
        assert self.partitioned is not None
        self._pad(self.partitioned.most(0))

    def _pad(self, forwards: int) -> None:
        for _ in range(forwards):
            one = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
            self._capture(self._inputs(one, one, one))

    def logits(self, chunk: TokenChunk, replace: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Compute the next-token logits [N, S, V].

        `replace` maps rows to what replaces the activations (for a transcoder, the target). A transcoder's
        hook must be reached before its target (`facts.target_first`).
        """
        assert self.facts.causal and self.with_head
        return self._whole(chunk, replace).logits

    def final_hidden(self, chunk: TokenChunk, replace: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Compute the last layer's output [N, S, H], with activations replaced as in `logits`."""
        assert not self.facts.causal and self.with_head
        return self._whole(chunk, replace).last_hidden_state

    def unembedding(self) -> Tensor:
        """Return the head's weights, W_U [V, H]."""
        assert self.facts.causal and self.with_head
        return self.model.get_output_embeddings().weight

    @torch.no_grad()
    def _whole(self, chunk: TokenChunk, replace: Callable[[Tensor], Tensor] | None) -> Any:
        tensors = (chunk.ids_NS, chunk.segment_NS, chunk.position_NS, chunk.keep_NS)
        ids, segment, position, keep = (each.to(self.device) for each in tensors)
        inputs = self._inputs(ids, segment, position)
        if replace is None:
            return self.model(**inputs)

        seen: list[Tensor] = []

        def note(x_NSD: Tensor) -> Tensor:
            seen[:] = [x_NSD[keep]]
            return x_NSD

        def splice(x_NSD: Tensor) -> Tensor:
            rows = torch.cat([*seen, x_NSD[keep]], 1)
            spliced = x_NSD.clone()
            spliced[keep] = replace(rows).to(x_NSD.dtype)
            return spliced

        assert not self.facts.target_first
        *inner, last = self.facts.hooks
        handles = [attach(self.base, hook, note) for hook in inner]
        handles.append(attach(self.base, last, splice))
        try:
            return self.model(**inputs)
        finally:
            for handle in handles:
                handle.remove()

    def _capture(self, inputs: dict[str, Any]) -> Tensor:
        """Run up to the last hook and no further; return the hooks' tensors side by side, [N, S, columns]."""
        caught: dict[str, Tensor] = {}
        hooks = self.facts.hooks

        def catch(x_NSD: Tensor, hook: str) -> Tensor:
            # A copy: the forward between the hooks might write into the tensor.
            caught.setdefault(hook, x_NSD.clone() if len(hooks) > 1 else x_NSD)
            if len(caught) == len(hooks):
                raise Stop
            return x_NSD

        handles = [attach(self.base, hook, partial(catch, hook=hook)) for hook in hooks]
        try:
            self.base(**inputs)
        except Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
            if self.partitioned is not None:
                self.partitioned.release()
        found = torch.cat([caught[hook] for hook in hooks], -1)
        check_not_split(self.facts, found.shape[-1])
        return found

    def _inputs(self, ids: Tensor, segment: Tensor, position: Tensor) -> dict[str, Any]:
        masks = packed_masks(segment, position, self.config, causal=self.facts.causal, dtype=self.dtype)
        return {"input_ids": ids, "attention_mask": masks, "position_ids": position + self.first_position}

    @torch.no_grad()
    def _prove_packing(self) -> None:
        """Compare packed segments with the same segments run alone and without any mask.

        Raises:
            ConfigError: they differ, or the model does not accept explicit masks or positions.
        """
        ids, segment, position, lengths = self._proof_batch()
        name = self.facts.name
        try:
            packed = self._last(self._inputs(ids, segment, position))
        except ConfigError:
            raise
        except Exception as error:
            raise cannot_pack(name, error) from error
        alone = torch.cat([self._last({"input_ids": part}) for part in ids.split(lengths, 1)], 1)
        for got, wanted in zip(self._apart(packed), self._apart(alone), strict=True):
            difference = (got - wanted).norm(dim=-1) / wanted.norm(dim=-1).clamp_min(1e-30)
            if not difference.mean() <= TOLERANCE[self.dtype]:
                raise ConfigError(
                    f"llm.name={name} lets packed documents see each other, or misplaces them: activations "
                    f"differ by {float(difference.mean()):.1%} from each document's alone; use another model"
                )

    def _apart(self, used: Tensor) -> tuple[Tensor, ...]:
        """Split what `_last` returned by hook, in float64: activations differ much in size between hooks."""
        return (used.double(),) if self.with_head else used.double().split(self.facts.widths, -1)

    def _proof_batch(self) -> tuple[Tensor, Tensor, Tensor, list[int]]:
        """Return ids, segments and positions [1, S] of random text, and the lengths of its segments."""
        window = getattr(self.config, "sliding_window", None) or LONGEST_PROOF
        lengths = [*PROOF_LENGTHS, window + 8] if window < LONGEST_PROOF else [*PROOF_LENGTHS]
        lengths = [min(length, self.facts.context or length) for length in lengths]
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(self.facts.vocab_size, (1, sum(lengths)), generator=random)
        # Some models treat the padding token as padding, wherever it is.
        padding = getattr(self.config, "pad_token_id", None)
        if padding is not None:
            ids[ids == padding] = (padding + 1) % self.facts.vocab_size
        segment = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])[None]
        position = torch.cat([torch.arange(n) for n in lengths])[None]
        return ids.to(self.device), segment.to(self.device), position.to(self.device), lengths

    def _last(self, inputs: dict[str, Any]) -> Tensor:
        """Return the part of the output that is used: with head the model's own, else the hooks' tensors."""
        if not self.with_head:
            return self._capture(inputs)
        out = self.model(**inputs)
        return out.logits if self.facts.causal else out.last_hidden_state


def _trim(config: Any, hooks: tuple[str, ...]) -> None:
    """Remove the layers after the last hook's from the config: they are neither loaded nor run."""
    number = last_layer(hooks)
    if number is None:
        return
    layers = config.num_hidden_layers
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(config, key, value[: number + 1])
    config.num_hidden_layers = number + 1


def full_and_rest(chunk: TokenChunk) -> Iterator[tuple[Tensor, ...]]:
    """Yield ids, segments, positions and kept places of a chunk.

    The last sequence is a batch of its own, without its padding, if much of it is padding.
    """
    tensors = (chunk.ids_NS, chunk.segment_NS, chunk.position_NS, chunk.keep_NS)
    last = int((chunk.segment_NS[-1] > 0).sum())
    if last > TRIM_BELOW * chunk.ids_NS.shape[1]:
        yield tensors
        return
    if len(chunk.ids_NS) > 1:
        yield tuple(each[:-1] for each in tensors)
    yield tuple(each[-1:, :last] for each in tensors)
