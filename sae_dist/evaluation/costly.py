"""The parts of an evaluation that are computed only on request.

Letters: as core.types; N rows at chosen tokens.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.evaluation.asked import PYTHON
from sae_dist.evaluation.probes import absorption as absorbed
from sae_dist.evaluation.probes.controls import controls, rows_held
from sae_dist.evaluation.probes.labels import PYTHON_TOKENS, python_tasks, read_labelled, text_tasks
from sae_dist.evaluation.probes.probing import encode_rows, probe_tasks
from sae_dist.evaluation.probes.rows_at import room, rows_at
from sae_dist.evaluation.quality.measure import Evaluation, evaluate
from sae_dist.evaluation.quality.redundancy import redundancy
from sae_dist.evaluation.subject import Subject, llm_rows

CORPUS_TOKENS = 100_000
ABSORPTION_TOKENS = 65_536


def evaluate_costly(subject: Subject, full: bool) -> dict[str, Any]:
    """Compute `redundancy`, `fvu_second_corpus`, `probes`, `absorption` and `controls` of eval.json.

    Each is null, with a reason, if neither its key nor `full` asks for it, or if it does not apply.

    Raises:
        ConfigError: what a key names is missing or unsuitable; see `check_asked`.
    """
    wanted = subject.cfg.eval
    result = redundancy(subject.sae.W_dec_FE, full, subject.folder)
    result |= second_corpus(subject)
    result |= probes(subject) if full or wanted.probes else not_asked("probes", "eval.probes=python")
    result |= (
        absorption(subject) if full or wanted.absorption else not_asked("absorption", "eval.absorption=true")
    )
    result |= control(subject) if full or wanted.controls else not_asked("controls", "eval.controls=true")
    return result


def check_asked(subject: Subject) -> None:
    """Check that the second corpus and the labelled texts can be read, before anything is computed.

    Raises:
        ConfigError: they are missing or unsuitable.
    """
    wanted = subject.cfg.eval
    if wanted.probes and wanted.probes != PYTHON:
        read_labelled(wanted.probes)
    if wanted.corpus and subject.why_no_llm() is None:
        corpus_chunks(subject)


def not_asked(key: str, how: str) -> dict[str, Any]:
    """Return null for a key, with the way to request it as the reason."""
    return {key: None, f"{key}_reason": f"not asked for: --full, or {how}"}


def nothing(key: str, reason: str) -> dict[str, Any]:
    """Return null for a key, with the reason."""
    return {key: None, f"{key}_reason": reason}


def second_corpus(subject: Subject) -> dict[str, Any]:
    """Measure `fvu_second_corpus`, and describe the text in `second_corpus`: path, tokens, L0.

    Only its held-out documents are read, one in eight, so it may be the training text itself.
    """
    path, key = subject.cfg.eval.corpus, "fvu_second_corpus"
    if path is None:
        return nothing(key, "not asked for: eval.corpus=PATH")
    if reason := subject.why_no_llm():
        return nothing(key, reason)
    cfg = dataclasses.replace(subject.cfg, eval=dataclasses.replace(subject.cfg.eval, baselines=False))
    part = Evaluation(cfg, subject.sae, subject.encode)
    rows = (chunk.rows_RD.to(subject.device) for chunk in corpus_chunks(subject))
    evaluate([part], rows, min(CORPUS_TOKENS, subject.cfg.eval.tokens))
    found = part.numbers()
    about = {name: found[name] for name in ("eval_tokens", "l0", "explained_variance")}
    return {key: found["fvu"], "second_corpus": {"path": path} | about}


def corpus_chunks(subject: Subject) -> Iterator[Any]:
    """Yield the activations of the second corpus; the first chunk is computed at once, as a check.

    Raises:
        ConfigError: no such text, or too little of it.
    """
    path = subject.cfg.eval.corpus
    tokens = dataclasses.replace(
        TokensConfig(kind="text", path=path),
        context=subject.cfg.tokens.context,
        max_norm_multiple=subject.cfg.tokens.max_norm_multiple,
    )
    try:
        chunks = llm_rows(subject.cfg, tokens, subject.llm).open(0, None)
        first = next(chunks, None)
    except ConfigError as error:
        raise ConfigError(str(error).replace("tokens.path=", "eval.corpus=")) from None
    if first is None:
        raise ConfigError(
            f"eval.corpus={path} has too little text: its held-out part, one document in eight, does not "
            f"fill a chunk of shuffle.chunk_rows={subject.cfg.shuffle.chunk_rows} tokens"
        )
    return itertools.chain([first], chunks)


def probes(subject: Subject) -> dict[str, Any]:
    """Compute `probes`; see `evaluation.probes.probing` and `evaluation.probes.labels`."""
    if reason := subject.why_no_llm():
        return nothing("probes", reason)
    source = subject.cfg.eval.probes or PYTHON
    assert subject.cfg.tokens.context is not None, "filled in by config.resolve"
    space = room(subject.facts, subject.cfg.tokens.context)
    if source == PYTHON:
        passages, tasks = python_tasks(subject.encoder, space, min(PYTHON_TOKENS, subject.cfg.eval.tokens))
    else:
        passages, tasks = text_tasks(read_labelled(source), subject.encoder.ids, space)
    if not passages:
        return nothing("probes", "there are no held-out sources on this machine")
    x_ND = rows_at(subject.llm, passages)
    return {"probes": {"source": source} | probe_tasks(subject.sae, subject.encode, x_ND, tasks)}


def absorption(subject: Subject) -> dict[str, Any]:
    """Compute `absorption`; see `evaluation.probes.absorption`."""
    if reason := subject.why_no_llm() or of_autoencoders(subject):
        return nothing("absorption", reason)
    letter_V = absorbed.letters_of(subject.encoder.words(subject.facts.vocab_size))
    rows: list[Tensor] = []
    ids: list[Tensor] = []
    seen = words = 0
    for chunk in subject.chunks():
        ids_R = chunk.ids_R.cpu()
        kept_R = letter_V[ids_R] >= 0
        rows.append(chunk.rows_RD.cpu()[kept_R].float())
        ids.append(ids_R[kept_R])
        seen, words = seen + len(ids_R), words + len(ids[-1])
        if seen >= min(ABSORPTION_TOKENS, subject.cfg.eval.tokens) or words >= 2 * absorbed.MOST_ROWS:
            break
    ids_N = torch.cat(ids)
    chosen = absorbed.few_of_each(ids_N, letter_V[ids_N])
    x_ND, word_N = torch.cat(rows)[chosen], ids_N[chosen]
    codes = encode_rows(subject.sae, subject.encode, x_ND)
    return absorbed.absorption(codes, x_ND, subject.sae.W_dec_FE, word_N, letter_V[word_N])


def control(subject: Subject) -> dict[str, Any]:
    """Compute `controls`; see `evaluation.probes.controls`."""
    if reason := of_autoencoders(subject):
        return nothing("controls", reason)
    reason = subject.why_no_llm()
    if reason and subject.cfg.has_llm:
        return nothing("controls", reason)
    reason = reason or ("the LM is random itself" if subject.cfg.llm.random_init else None)
    most = min(rows_held(subject.sae.width), max(subject.cfg.eval.tokens, 1))
    x_ND = subject.first_rows(most)
    random_ND = None if reason else subject.first_rows(most, subject.load(random_init=True))
    found: dict[str, Any] = controls(subject.sae, subject.encode, x_ND, random_ND)
    if reason:
        found |= {"random_llm": None, "random_llm_reason": reason}
    return {"controls": found}


def of_autoencoders(subject: Subject) -> str | None:
    """Explain why a number for autoencoders does not apply to a transcoder; None: it applies."""
    return "a transcoder writes elsewhere than it reads" if subject.sae.transcoder else None
