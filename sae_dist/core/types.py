"""The types that flow between the stages. Stages never import each other; they meet here, without torch.

A name ends with the letters of its dimensions: x_BD is [B, D]. In every file, unless its docstring says more:

    B   rows of a batch; of several replicas, those of this one
    b   some of the B rows: those that this rank drew and owns, or a part that is computed at once
    R   rows of a chunk, or of a batch of an evaluation
    D   width of the input
    E   width of the output; an autoencoder's is D
    C   columns of the rows that flow: input, and beside it a transcoder's target
    F   latents; where a dictionary is sharded, those of this rank
    f   some of the F latents: a tile
    K   slots of a row's codes (its active latents); k in formulas
    P   pairs of a row and a latent, sorted by row
    U   touched latents: those of at least one pair
    G   true features of synthetic activations
    N   sequences
    S   tokens per sequence
    T   tokens of several sequences, one after the other
    V   tokens of the vocabulary
    1   one number
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Position = dict[str, int]
"""Where a lane stands in its source: JSON-able, and enough to reach that place directly.

Every position has the key `chunk`: how many chunks of the lane lie before it."""


LEFT_OUT = ("special", "masked", "listed", "roles", "documents")
"""Why tokens are no activations, as `left_out` of a chunk counts them: special tokens of the tokenizer,
tokens with attention mask 0, `tokens.exclude_ids`, other roles than `tokens.roles`. `documents` counts
documents that could not be used."""


@dataclass
class TokenChunk:
    """The tokens of one chunk, packed into sequences: the input of a producer's LLM.

    ids_NS          token ids (int64); padding holds any valid id
    segment_NS      0 = padding, 1.. = number of the segment within its sequence; attention never
                    crosses segments
    position_NS     position ids within the segment, from 0
    keep_NS         True where the activation counts: neither padding nor a special token
    document_NS     a number that tells documents of this lane apart (-1 at padding)
    start           the position at which reading this chunk began: opening the lane there yields
                    this chunk again
    left_out        how many tokens read for this chunk are no activations, by reason (`LEFT_OUT`; reasons
                    without any are left out)
    """

    number: int
    lane: int
    ids_NS: Tensor
    segment_NS: Tensor
    position_NS: Tensor
    keep_NS: Tensor
    document_NS: Tensor
    start: Position
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass
class ActivationChunk:
    """The R activations of one chunk of a lane, in reading order: they travel from producer to consumer.

    rows_RD is on the producer's device, for a transcoder [activation | target]; ids_R holds the token
    id of each row (or the row's number in an activation file); excluded and repeated count what
    `tokens.max_norm_multiple` left out, and the rows of this chunk that had to stand in twice because
    too many were. left_out counts the tokens that were no activations at all, as in `TokenChunk`.
    """

    number: int
    lane: int
    rows_RD: Tensor
    ids_R: Tensor
    start: Position
    excluded: int = 0
    repeated: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


@dataclass
class Batch:
    """The rows of one step that this rank drew."""

    x_BD: Tensor
    ids_B: Tensor


class ChunkSource(Protocol):
    """A source of activation chunks, in order in each lane: an LLM, a file, another rank."""

    width: int

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        """Yield the chunks of `lane` from `start` on (None: from the beginning)."""
        ...


class Clock(Protocol):
    """A clock for the phases of a step: `with clock("encode"): ...`. `metrics.clock` lists them."""

    def __call__(self, phase: str) -> AbstractContextManager[None]: ...


def untimed(phase: str) -> AbstractContextManager[None]:
    """Return a context that times nothing: a `Clock`."""
    return nullcontext()


@dataclass(frozen=True)
class Precision:
    """The dtypes of a run: of weights and moments, and of activations on the wire and in the LLM."""

    master: torch.dtype
    wire: torch.dtype

    @staticmethod
    def of(name: str) -> Precision:
        """Return the dtypes that the config calls `name`."""
        import torch

        wire = {
            "float32": torch.float32,
            "float64": torch.float64,
            "bfloat16": torch.bfloat16,
        }[name]
        return Precision(master=torch.float64 if name == "float64" else torch.float32, wire=wire)


@dataclass
class Codes:
    """The sparse codes of B rows: `K` slots per row, of which the first `count_B` are used.

    idx_BK  latent numbers within this rank's shard (int64)
    val_BK  codes before ReLU, sorted descending (ties: ascending latent)
    count_B used slots per row; None: all K
    """

    idx_BK: Tensor
    val_BK: Tensor
    count_B: Tensor | None = None


@dataclass
class RowTerm:
    """A term of a weight's gradient: dW[f] += sum over pairs p of latent f of coeff[p] * rows[row of p].

    Pairs are sorted by row; `offsets_B` holds the first pair of each row. The bias that goes with the
    weight gets the sum of the coefficients.
    """

    latent_P: Tensor
    coeff_P: Tensor
    offsets_B: Tensor
    rows_BD: Tensor


@dataclass
class LossTerms:
    """The scalars of one step, on the device; backward() starts from `total`.

    Every value is this rank's share of a sum over all consumer ranks, but for `most_dead`: an upper bound of
    the number of this shard's latents that are dead two steps later.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class LlmFacts:
    """The facts about the frozen LLM that are known before any weight is loaded.

    name      as the config says it; path: folder or hub name that transformers loads
    hook      resolved hook, `layers.1:out` or `layers.1.mlp:in`, relative to the base model
    width     the size of the captured activation's last dimension
    causal    False: an encoder (bidirectional attention, no cross-entropy)
    context   the model's own limit on tokens per sequence (None: it states none)
    prefix    special tokens put before every segment (BOS or CLS); never kept as activations
    suffix    special tokens put after every segment (SEP); never kept
    packed    whether several documents share a sequence; False: each has one of its own
    attn      implementation of attention, as transformers calls it
    auto      names of the auto classes that load the base model, and the whole model
    special_ids   every special token of the tokenizer, marks of its chat template included; never kept
    pad_id        the token that pads (None: there is none): a run of it at an end of a document is no text
    architecture      the class of the base model
    parameters        numbers in the layers up to the last hook, and in what comes before them
    whole_parameters  numbers in all layers, with the LM head
    tp_sizes          group sizes that tensor parallelism can have (None: there is no plan for it)

    For a transcoder also:

    target_hook   resolved hook of what is to be predicted from the activation at `hook`
    target_width  the size of its last dimension
    target_first  whether a forward reaches target_hook before hook

    For a grid of hooks also:

    more      the other hooks, each with its width; one dictionary reads the columns of one hook
    more_targets  of each of these the target of its transcoder, its width, whether it is reached first;
              empty: they get autoencoders. A target's columns follow its hook's
    """

    name: str
    path: str
    hook: str
    width: int
    causal: bool
    context: int | None
    vocab_size: int
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    target_hook: str | None = None
    target_width: int | None = None
    target_first: bool = False
    more: tuple[tuple[str, int], ...] = ()
    more_targets: tuple[tuple[str, int, bool], ...] = ()
    packed: bool = True
    attn: str = "sdpa"
    auto: tuple[str, str] = ("AutoModel", "AutoModelForCausalLM")
    architecture: str = ""
    parameters: int = 0
    whole_parameters: int = 0
    tp_sizes: tuple[int, ...] | None = None
    special_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    @property
    def pairs(self) -> tuple[LlmFacts, ...]:
        """The facts for each dictionary's place: one hook and, of a transcoder, its target."""
        first = replace(self, more=(), more_targets=())
        targets = self.more_targets or ((None, None, False),) * len(self.more)
        return (
            first,
            *(
                replace(first, hook=hook, width=width, target_hook=to, target_width=size, target_first=early)
                for (hook, width), (to, size, early) in zip(self.more, targets, strict=True)
            ),
        )

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths of all places that are captured, in the order of the columns."""
        if self.more:
            return tuple(width for pair in self.pairs for width in pair.widths)
        return (self.width,) if self.target_width is None else (self.width, self.target_width)

    @property
    def columns(self) -> int:
        """The width of the rows that flow: the activation at each hook, a transcoder's target behind it."""
        return sum(self.widths)

    @property
    def hooks(self) -> tuple[str, ...]:
        """Every place that is captured, in the order of the columns; a grid may name one several times."""
        if self.more:
            return tuple(hook for pair in self.pairs for hook in pair.hooks)
        return (self.hook,) if self.target_hook is None else (self.hook, self.target_hook)

    @property
    def are_sources(self) -> tuple[bool, ...]:
        """The answer for each of `hooks`: is it read, rather than a target?"""
        return ((True,) if self.target_hook is None else (True, False)) * (1 + len(self.more))

    def only(self, hook: str | None, target_hook: str | None) -> LlmFacts:
        """Return the facts with one place of a grid's; without such a grid, all of them."""
        return self.pairs[self._place(hook, target_hook)] if self.more else self

    def stretch(self, hook: str | None, target_hook: str | None) -> slice:
        """Return the columns that a dictionary at one place of a grid reads; without such a grid, all."""
        if not self.more:
            return slice(0, self.columns)
        columns = [pair.columns for pair in self.pairs]
        place = self._place(hook, target_hook)
        return slice(sum(columns[:place]), sum(columns[: place + 1]))

    def _place(self, hook: str | None, target_hook: str | None) -> int:
        return [(pair.hook, pair.target_hook) for pair in self.pairs].index((hook or "", target_hook))
