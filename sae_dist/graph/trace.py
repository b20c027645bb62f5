"""The way from a prompt to its attribution graph.

Letters: as core.types; P latents that fire, C sources, T logits, M nodes.
"""

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import read_json, write_json
from sae_dist.distributed.collectives import Axis
from sae_dist.graph.assemble import assemble
from sae_dist.graph.exactness import check_linear, check_rows
from sae_dist.graph.follow import follow
from sae_dist.graph.graph import Graph
from sae_dist.graph.replacement import Replacement
from sae_dist.graph.sites import sites_of
from sae_dist.graph.store import Store
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.model import LanguageModel, as_model
from sae_dist.llm.architecture import text_part

MOST_LOGITS, ENOUGH = 10, 0.95
"""Without targets: so many tokens at most, until their probabilities sum to so much."""
ROWS, TRACE = "rows", "trace.json"


def trace(
    dictionaries: Sequence[Dictionary],
    lm: Any,
    prompt: Any,
    *,
    targets: Sequence[str | int] | None = None,
    max_nodes: int = 2000,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    batch: int = 64,
    folder: str | Path | None = None,
    set_name: str = "",
    axis: Axis | None = None,
    force: bool = False,
) -> Graph:
    """Draw the attribution graph of what a model says after a prompt.

    Args:
        dictionaries: a transcoder for each layer; layers without one have errors alone.
        lm: the model, as `sae_dist.model` returns it, or of transformers.
        prompt: a text, messages or token ids.
        targets: tokens whose logits are explained, as texts of one token or ids; None: the most probable.
        max_nodes: so many latents at most are followed back, those with the most influence.
        node_threshold, edge_threshold: the shares of influence that nodes, and links between them, keep.
        batch: so many targets are computed at once.
        folder: where rows are written and the graph is saved; a trace that was stopped goes on there.
        axis: ranks that share the work, and see the folder, which is needed then.
        force: take a model of another name than the transcoders'.

    Raises:
        ConfigError: an argument is not valid; the model is not linear where it should be, or rows do not add
            up; or the folder holds another graph.
    """
    _check_numbers(max_nodes, batch, node_threshold, edge_threshold)
    _check_shared(folder, axis)
    whole = exact_enough(as_model(lm))
    sites = sites_of(dictionaries, whole, force)
    replacement = Replacement(sites, whole, _ids(whole, prompt))
    probability_V = replacement.clean.logits_V.double().softmax(-1)
    replacement.tokens_T = _targets(whole, targets, probability_V)
    weight_T = _weights(probability_V[replacement.tokens_T].cpu())
    faithful = check_linear(replacement)
    settings = {
        "max_nodes": max_nodes,
        "node_threshold": node_threshold,
        "edge_threshold": edge_threshold,
        "batch": batch,
        "targets": None if targets is None else [*targets],
    }
    with _rows_folder(replacement, folder, settings, axis) as rows:
        store = Store(Path(rows), replacement.num_sources, replacement.clean.embedding_SD.dtype)
        follow(replacement, store, weight_T, max_nodes=max_nodes, batch=batch, axis=axis)
        checks, constant_t = check_rows(replacement, store, faithful)
        found = assemble(replacement, store, weight_T, checks, constant_t, settings, probability_V)
        _meet(axis)  # others may read rows until now
    text = prompt if isinstance(prompt, str) else "".join(found.tokens)
    found = replace(found, prompt=text, set_name=set_name)
    if folder is not None and (axis is None or axis.rank == 0):
        found.save(folder)
    return found


def exact_enough(lm: LanguageModel) -> LanguageModel:
    """Return a model whose gradients are exact enough: of half precision, a copy in float32.

    Raises:
        ConfigError: its weights are of another kind, or it is in training.
    """
    if lm.model.training:
        raise ConfigError(
            f"{lm.name} is in training, where it drops activations at random; call .eval() first"
        )
    if lm.dtype in (torch.float32, torch.float64):
        return lm
    if lm.dtype not in (torch.float16, torch.bfloat16):
        raise ConfigError(f"{lm.name} has weights of {lm.dtype}; a graph needs float32: load it unquantised")
    return replace(lm, model=copy.deepcopy(lm.model).float())


def _check_numbers(max_nodes: int, batch: int, node_threshold: float, edge_threshold: float) -> None:
    for name, number in (("max_nodes", max_nodes), ("batch", batch)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ConfigError(f"{name}={number}: give a whole number of at least 1")
    for name, share in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        if not 0 < share <= 1:
            raise ConfigError(f"{name}={share}: give a share above 0 and up to 1")


def _check_shared(folder: str | Path | None, axis: Axis | None) -> None:
    if folder is None and axis is not None and axis.size > 1:
        raise ConfigError("folder=None with several ranks: give a folder that all of them see")


def _ids(lm: LanguageModel, prompt: Any) -> Tensor:
    ids_S = lm.ids(prompt)
    if not len(ids_S):
        raise ConfigError("the prompt has no tokens; give at least one")
    if set(ids_S.tolist()) <= lm.special_ids:
        raise ConfigError(f"the prompt has special tokens only, {ids_S.tolist()[:8]}; give a text")
    most = getattr(text_part(lm.model.config), "max_position_embeddings", None)
    if most and len(ids_S) > most:
        raise ConfigError(f"the prompt has {len(ids_S)} tokens; {lm.name} takes {most} at most")
    return ids_S


def _targets(lm: LanguageModel, targets: Sequence[str | int] | None, probability_V: Tensor) -> Tensor:
    """Return the tokens whose logits are explained.

    Raises:
        ConfigError: a text is no single token, a token does not exist or is given twice, or there are none.
    """
    if not bool(probability_V.isfinite().all()):
        raise ConfigError(f"{lm.name} gives logits that are no numbers for this prompt")
    if targets is None:
        best_V = probability_V.argsort(descending=True, stable=True)[:MOST_LOGITS]
        reached = probability_V[best_V].cumsum(0)
        return best_V[: int((reached < ENOUGH).sum()) + 1]
    if isinstance(targets, str) or not targets:
        raise ConfigError(f"targets={targets!r}: give a list of texts of one token, or of token ids")
    found = [_token(lm, each, len(probability_V)) for each in targets]
    if len({*found}) < len(found):
        raise ConfigError(f"targets={list(targets)} names a token twice; name each once")
    return torch.tensor(found, dtype=torch.int64, device=probability_V.device)


def _weights(probability_T: Tensor) -> Tensor:
    """Return the weights of logits in the influence, which sum to 1."""
    whole = probability_T.sum()
    return probability_T / whole if whole > 0 else torch.full_like(probability_T, 1 / len(probability_T))


def _token(lm: LanguageModel, given: str | int, size: int) -> int:
    if isinstance(given, int) and not isinstance(given, bool):
        if not 0 <= given < size:
            raise ConfigError(
                f"targets: token {given} does not exist; those of {lm.name} are 0 to {size - 1}"
            )
        return given
    if lm.tokenizer is None or not isinstance(given, str):
        raise ConfigError(f"targets: {given!r} is no token id, which {lm.name} without a tokenizer needs")
    ids = list(lm.tokenizer(given, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ConfigError(f"targets: {given!r} is no token; give a text of one token, or an id")
    if len(ids) != 1:
        pieces = ", ".join(f"{text!r} ({number})" for text, number in zip(lm.pieces(ids), ids, strict=True))
        raise ConfigError(f"targets: {given!r} is {len(ids)} tokens: {pieces}; give one of them, or its id")
    return int(ids[0])


def _rows_folder(
    replacement: Replacement, folder: str | Path | None, settings: dict[str, Any], axis: Axis | None
) -> Any:
    """Return a context of the folder for rows: one that stays, or one that is removed afterwards.

    Raises:
        ConfigError: it holds the rows of another graph.
    """
    leads = axis is None or axis.rank == 0
    if folder is None:
        return TemporaryDirectory(prefix="graph-")
    rows = Path(folder) / ROWS
    own = {"settings": _of_rows(settings), "prompt": _digest(replacement)}
    if leads:
        there = read_json(rows / TRACE)
        if there is not None and there != json.loads(json.dumps(own)):
            raise ConfigError(f"{rows} holds rows of another graph; give another folder, or remove it")
        if there is None:
            rows.mkdir(parents=True, exist_ok=True)
            write_json(rows / TRACE, own)
    _meet(axis)
    return _Borrowed(str(rows))


def _meet(axis: Axis | None) -> None:
    """Wait for all ranks."""
    if axis is not None:
        axis.sum(torch.zeros(1))


class _Borrowed:
    """A folder that is somebody else's to remove."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self) -> str:
        """Return the name of the folder."""
        return self.name

    def __exit__(self, *_error: object) -> None:
        """Leave the folder as it is."""


def _of_rows(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings that rows depend on."""
    return {key: settings[key] for key in ("max_nodes", "batch")}


def _digest(replacement: Replacement) -> str:
    """Return a number that tells prompts, models, transcoders and targets apart by what they compute."""
    found = hashlib.sha256()
    latents = [each for each in replacement.active if each is not None]
    for each in (
        replacement.ids_S,
        replacement.tokens_T,
        replacement.clean.logits_V,
        *(each.latent_P for each in latents),
        *(each.position_P for each in latents),
        *(each.code_P for each in latents),
        *replacement.errors,
    ):
        found.update(each.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
