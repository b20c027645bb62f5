"""Distributions of the tokens that follow prompts, teacher-forced, and texts that are generated.

Letters: as core.types; K the tokens that follow a prompt.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sae_dist.interpret.model import LanguageModel
from sae_dist.interpret.study.conditioned import Conditioned

BYTES = 1 << 27
"""About how large the logits of a batch may be."""
Ids = Sequence[int]


@dataclass(frozen=True)
class Batch:
    """Prompts with what follows them, padded on the right, where no token before it sees padding.

    Attributes:
        ids_NS, mask_NS: arguments of the model.
        length_N1: how many tokens each prompt has.
        tail_NK: the tokens that follow; 0 beyond a text's own.
        real_NK: which of those are its own.
    """

    ids_NS: Tensor
    mask_NS: Tensor
    length_N1: Tensor
    tail_NK: Tensor
    real_NK: Tensor

    @classmethod
    def of(cls, prompts: Sequence[Ids], tails: Sequence[Ids], lm: LanguageModel) -> "Batch":
        """Return a batch on the model's device."""
        rows = [[*prompt, *tail] for prompt, tail in zip(prompts, tails, strict=True)]
        return cls(
            _padded(rows, lm.pad_id).to(lm.device),
            _padded([[1] * len(row) for row in rows], 0).to(lm.device),
            torch.tensor([[len(prompt)] for prompt in prompts], device=lm.device),
            _padded(tails, 0).to(lm.device),
            _padded([[1] * len(tail) for tail in tails], 0).bool().to(lm.device),
        )


def _padded(rows: Sequence[Ids], value: int) -> Tensor:
    found = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for number, row in enumerate(rows):
        found[number, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return found


def log_probabilities(lm: LanguageModel, batch: Batch, session: Conditioned | None = None) -> Tensor:
    """Return the log-probabilities of all tokens at the places of those that follow [N, K, V].

    Args:
        session: how the model is steered; None: it is as it is.
    """
    return logits(lm, batch, session).log_softmax(-1)


def logits(lm: LanguageModel, batch: Batch, session: Conditioned | None = None) -> Tensor:
    """Return the logits at the places of the tokens that follow [N, K, V], in float32 or better."""
    N, K = batch.tail_NK.shape
    place_NK = (batch.length_N1 - 1 + torch.arange(K, device=batch.ids_NS.device)).clamp(
        max=batch.ids_NS.shape[1] - 1
    )
    given: dict[str, Any] = {"input_ids": batch.ids_NS, "attention_mask": batch.mask_NS, "use_cache": False}
    first, last = int(place_NK.min()), int(place_NK.max())
    few = "logits_to_keep" in inspect.signature(lm.model.forward).parameters
    if few:
        given["logits_to_keep"] = torch.arange(first, last + 1, device=batch.ids_NS.device)
    if session is not None:
        session.lengths_N1 = batch.length_N1
    with torch.no_grad(), session if session is not None else nullcontext():
        found = wide(lm.model(**given).logits)
    V = found.shape[-1]
    return found.gather(1, (place_NK - first if few else place_NK)[..., None].expand(N, K, V))


def wide(x: Tensor) -> Tensor:
    """Return numbers of 16 bits as float32, others as they are."""
    return x if x.dtype == torch.float64 else x.float()


def batches(lm: LanguageModel, lengths: Sequence[int], more: int) -> Iterator[list[int]]:
    """Yield the numbers of prompts that are computed together, of similar length.

    Args:
        more: how many tokens follow each.
    """
    vocabulary = lm.model.get_output_embeddings()
    size = vocabulary.weight.shape[0] if vocabulary is not None else 1 << 16
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    rows: list[int] = []
    for number in order:
        # Logits are computed from the shortest prompt's end to the longest's.
        columns = more + lengths[number] - lengths[rows[0]] if rows else more
        if rows and (len(rows) + 1) * columns * size * 4 > BYTES:
            yield rows
            rows = []
        rows.append(number)
    if rows:
        yield rows


def generated(
    lm: LanguageModel, prompts: Sequence[Ids], tokens: int, session: Conditioned | None = None
) -> list[list[int]]:
    """Return the `tokens` most likely tokens, one after the other, after each prompt; never an end of text.

    Prompts are padded on the left.
    """
    if lm.dtype == torch.float64 and len({len(each) for each in prompts}) > 1:
        # In this precision eager attention of transformers makes NaN of padding, and then of all tokens.
        return [generated(lm, [each], tokens, session)[0] for each in prompts]
    batch = lm.batch([list(each) for each in prompts])
    if session is not None:
        session.lengths_N1, session.known = None, None
    with torch.no_grad(), session if session is not None else nullcontext():
        found = lm.generate(
            **batch,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            pad_token_id=lm.pad_id,
        )
    return [row.tolist() for row in found[:, batch["input_ids"].shape[1] :]]


def repetition(ids: Ids, size: int = 3) -> float:
    """Return the share of a text's runs of `size` tokens that it had before."""
    runs = [tuple(ids[first : first + size]) for first in range(len(ids) - size + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
