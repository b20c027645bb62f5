"""The proof that rows are the whole model's: random documents together, against each alone in that model."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line
from sae_dist.core.types import LlmFacts
from sae_dist.distributed.collectives import Axis

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Mean relative difference of rows that are the same: rounding is far below it, and a token that sees another
document's far above."""
LENGTHS = (5, 7, 3, 67)
LONGEST = 512
USUAL = 256
"""Tokens of a document that is as long as a sequence, unless the model has a lower limit."""


class MixedDocuments(ConfigError):
    """A model that does not keep documents of one sequence apart, or padding from a document."""


class Llm(Protocol):
    """The members of `llm.frozen.FrozenLlm` that this file uses."""

    model: Any
    config: Any
    facts: LlmFacts
    device: torch.device
    dtype: torch.dtype

    def inputs(self, ids: Tensor, segment: Tensor, position: Tensor) -> dict[str, Any]: ...

    def used(self, inputs: dict[str, Any]) -> Tensor: ...


@dataclass(frozen=True)
class Documents:
    """Random documents: ids, segments and positions, as in `core.types.TokenChunk`, and each one's ids."""

    ids_NS: Tensor
    segment_NS: Tensor
    position_NS: Tensor
    alone: tuple[Tensor, ...]


def random_documents(facts: LlmFacts, config: Any, text: Any) -> Documents:
    """Lay out a few documents of random ids as the run will: in one sequence, or each in its own.

    One is as long as sequences usually are, and longer than the window in which tokens see each other.

    Args:
        config: the model's.
        text: the config of the part that reads text.
    """
    reach = (getattr(text, "sliding_window", None), getattr(text, "attention_chunk_size", None))
    windows = [each + 8 for each in reach if each and each < LONGEST]
    lengths = [min(length, facts.context or length) for length in (*LENGTHS, max([USUAL, *windows]))]
    # Of the ids with a meaning of their own, such as padding or an image's place, a model may make anything.
    special = _special(config) | _special(text)
    ordinary = torch.tensor([each for each in range(facts.vocab_size) if each not in special])
    random = torch.Generator().manual_seed(0)
    picked = torch.randint(len(ordinary), (sum(lengths),), generator=random)
    alone = ordinary[picked].split(lengths)
    shape = (1, sum(lengths)) if facts.packed else (len(lengths), max(lengths))
    ids_NS, segment_NS, position_NS = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    at = 0
    for number, ids in enumerate(alone):
        row, begin = (0, at) if facts.packed else (number, 0)
        place = slice(begin, begin + len(ids))
        ids_NS[row, place], segment_NS[row, place] = ids, number + 1 if facts.packed else 1
        position_NS[row, place] = torch.arange(len(ids))
        at += len(ids)
    return Documents(ids_NS, segment_NS, position_NS, tuple(ids[None] for ids in alone))


def difference(found: Tensor, wanted: Tensor, widths: tuple[int, ...]) -> float:
    """Return the mean relative difference of rows, [R, columns], at the hook where it is largest.

    Args:
        widths: columns of each hook: activations differ much in size between hooks.
    """
    parts = zip(found.double().split(widths, 1), wanted.double().split(widths, 1), strict=True)
    means = [((a - b).norm(dim=1) / b.norm(dim=1).clamp_min(1e-30)).mean() for a, b in parts]
    # NaN is not a small difference.
    return max(float(mean) if mean.isfinite() else float("inf") for mean in means)


@torch.no_grad()
def rows_alone(llm: Llm) -> Tensor:
    """Run each of the documents by itself, without any mask, [R, columns], on the host."""
    documents = random_documents(llm.facts, llm.model.config, llm.config).alone
    return torch.cat([llm.used({"input_ids": ids.to(llm.device)})[0] for ids in documents]).cpu()


def rows_of_whole(llm: Llm) -> Tensor:
    """Return what `rows_alone` does, of a model that nothing was cut off.

    Raises:
        ConfigError: the model does not run.
    """
    try:
        return rows_alone(llm)
    # Models come with code of their own, which can raise anything.
    except Exception as error:
        raise ConfigError(
            f"llm.name={llm.facts.name} does not run on token ids ({first_line(error)}); use another model"
        ) from error


def difference_alone(llm: Llm, wanted: Tensor | None, team: Axis | None) -> tuple[str | None, Tensor | None]:
    """Compare documents run alone with the rows that the whole model gave for them.

    Args:
        wanted: those rows; None: it is seen only that the model runs.
        team: the ranks that hold the model together; they learn of each other's differences.

    Returns:
        What is wrong, None: nothing is; and the rows that this model gave, if it gave any.
    """
    apart, said, found = 0.0, "", None
    try:
        found = rows_alone(llm)
        if wanted is not None:
            apart = difference(found, wanted, _widths(llm, found))
    # Models come with code of their own, and one that misses its last layers can raise anything.
    except Exception as error:
        apart, said = float("inf"), f"it does not run on token ids ({first_line(error)})"
    if team is not None:
        apart = float(team.max(torch.tensor([apart], dtype=torch.float64)))
    if apart <= TOLERANCE[llm.dtype]:
        return None, found
    return said or f"its activations differ by {apart:.1%} from those of the whole model", found


@torch.no_grad()
def check_together(llm: Llm, wanted: Tensor) -> None:
    """Compare documents run together, as training runs them, with the same documents alone.

    Args:
        wanted: rows of the documents alone, of the whole model if it was run, else of this one.

    Raises:
        MixedDocuments: they differ, or the model does not run on them.
    """
    name, packed = llm.facts.name, llm.facts.packed
    documents = random_documents(llm.facts, llm.model.config, llm.config)
    tensors = (documents.ids_NS, documents.segment_NS, documents.position_NS)
    ids, segment, position = (each.to(llm.device) for each in tensors)
    remedy = "use llm.packed=false" if packed else "use another model"
    try:
        found = llm.used(llm.inputs(ids, segment, position))[segment > 0].cpu()
    except ConfigError:
        raise
    except Exception as error:
        how = "packed documents" if packed else "padded documents"
        said = first_line(error)
        raise MixedDocuments(f"llm.name={name} cannot be run on {how} ({said}); {remedy}") from error
    apart = difference(found, wanted, _widths(llm, found))
    if not apart <= TOLERANCE[llm.dtype]:
        how = "lets packed documents see each other, or misplaces them" if packed else "sees padding"
        raise MixedDocuments(
            f"llm.name={name} {how}: activations differ by {apart:.1%} from each document's alone; {remedy}"
        )


def _widths(llm: Llm, used: Tensor) -> tuple[int, ...]:
    """Return the columns that are compared as one: a hook's, or all of what the whole model returns."""
    return llm.facts.widths if used.shape[1] == llm.facts.columns else (used.shape[1],)


def _special(config: Any) -> set[int]:
    found = {key: value for key, value in vars(config).items() if key.endswith(("token_id", "token_index"))}
    return {value for value in found.values() if isinstance(value, int)}
