"""The latents that fired on a text: their codes, what they add, and how unusual that is.

Letters: as core.types; I latents that fired.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.codes import Codes
from sae_dist.interpret.counted import multiple, outliers, special_tokens
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.explaining.effects import Direct, direct
from sae_dist.interpret.explaining.explanation import Explanation
from sae_dist.interpret.explaining.parts import Parts, Tokens, parts_of
from sae_dist.interpret.explaining.rows import activations, document_ids
from sae_dist.interpret.explaining.unusual import CORRELATIONS, LEVEL, NOT_MEASURED, Rates
from sae_dist.interpret.session import Session
from sae_dist.interpret.statistics import holm


def explain(
    dictionary: Dictionary,
    lm: Any,
    text: Any,
    *,
    top: int = 20,
    rates: Any = None,
    labels: Mapping[int, str] | None = None,
    force: bool = False,
) -> Explanation:
    """Tell which latents fired on a text, what each adds, and how unusual it is there.

    The text is read as a document alone is in training and evaluation, and codes are theirs.

    Args:
        lm: `sd.model(d)`, or a model of transformers.
        text: a text; messages, which go through the tokenizer's chat template; or token ids, taken as they
            are.
        top: how many latents are shown in print and in HTML; tables have all.
        rates: share of tokens on which each latent fires elsewhere [F], or `CodeStatistics`; None: as
            measured.
        labels: words for latents; None: those that stand beside the atlas of its run, but for rejected ones.
        force: go on with another model than the one that the dictionary was trained on.

    Raises:
        ConfigError: the model is not the dictionary's, or the text has no token that counts, or too many.
        DataError: activations are not finite.
    """
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ConfigError(f"top={top}: give the number of latents to show, at least 1")
    named = labels_of(dictionary, labels)
    known = Rates.of(dictionary, rates)
    session = Session(dictionary, lm, force)
    ids_S = document_ids(session, text)
    tokens, codes, x_SD, y_SE = encoded(session, ids_S)
    paths = direct(session, ids_S)
    parts = parts_of(session.on(x_SD.device), codes, x_SD, y_SE, paths.grad_SE)
    pairs = _pairs(tokens, parts, known, named)
    return Explanation(
        about=_about(session, text, tokens, parts, known, paths, top),
        codes=parts.codes,
        error=parts.error_SE,
        pairs=pairs,
        tokens_seen=_token_columns(session, tokens, parts, paths),
        latents_seen=_latents(tokens, parts, known, named),
    )


def encoded(session: Session, ids_S: Tensor) -> tuple[Tokens, Codes, Tensor, Tensor]:
    """Run the model on a document and encode its activations.

    Returns:
        Its tokens, the codes of all of them, and the activations at the hook [S, D] and at the target [S, E].

    Raises:
        ConfigError: it has special tokens only, or its activations are not what the dictionary is for.
        DataError: they are not finite.
    """
    special_S = special_tokens(session.dictionary, session.lm, ids_S.cpu())
    if bool(special_S.all()):
        raise ConfigError(
            f"the text has special tokens only, {ids_S.tolist()[:8]}, which are no activations for a "
            "dictionary; give a text"
        )
    x_SD, y_SE = activations(session, ids_S)
    tokens = _tokens(session, ids_S.cpu(), special_S, x_SD)
    codes = _codes(session.on(x_SD.device), x_SD, tokens.counted_S.to(x_SD.device))
    return tokens, codes, x_SD, y_SE


def labels_of(dictionary: Dictionary, labels: Mapping[int, str] | None) -> dict[int, str]:
    """Return words for latents; None: those beside the atlas of the dictionary's run, but for rejected ones.

    Raises:
        ConfigError: they name no latents.
    """
    if labels is None:
        return dictionary.place.labels(dictionary.num_latents)
    try:
        found = {int(latent): str(words) for latent, words in labels.items()}
    except (AttributeError, TypeError, ValueError):
        raise ConfigError("labels must map numbers of latents to words, such as {123: 'dates'}") from None
    dictionary.checked(list(found))
    return found


def _tokens(session: Session, ids_S: Tensor, special_S: Tensor, x_SD: Tensor) -> Tokens:
    norm_S, outlier_S, counted_S = outliers(session.dictionary, special_S, x_SD)
    return Tokens(ids_S, session.lm.pieces(ids_S.tolist()), special_S, outlier_S, counted_S, norm_S)


def _codes(d: Dictionary, x_SD: Tensor, counted_S: Tensor) -> Codes:
    """Return the codes of all tokens; those that count are encoded together, as evaluation does."""
    found = [(d.encode(x_SD[at_S]), at_S.nonzero()[:, 0]) for at_S in (counted_S, ~counted_S)]
    row_P = torch.cat([row[codes.rows] for codes, row in found])
    order = row_P.argsort(stable=True)
    latents, values = (torch.cat([getattr(each, key) for each, _ in found]) for key in ("latents", "values"))
    ends_S = torch.bincount(row_P, minlength=len(x_SD)).cumsum(0)
    indptr = torch.cat([ends_S.new_zeros(1), ends_S])
    return Codes(indptr, latents[order], values[order], d.num_latents, (len(x_SD),))


def _pairs(tokens: Tokens, parts: Parts, known: Rates | None, labels: dict[int, str]) -> dict[str, list[Any]]:
    codes = parts.codes
    rows, latents = codes.rows.tolist(), codes.latents.tolist()
    nothing = [None] * len(rows)
    return {
        "position": rows,
        "token_id": tokens.ids_S[codes.rows].tolist(),
        "token": [tokens.pieces[row] for row in rows],
        "latent": latents,
        "code": codes.values.tolist(),
        "share": parts.share_P.tolist(),
        "effect": nothing if parts.effect_P is None else parts.effect_P.tolist(),
        "rate": nothing if known is None else known.rate_F[codes.latents].tolist(),
        "surprise": nothing if known is None else known.surprise(codes.latents).tolist(),
        "label": [labels.get(latent) for latent in latents],
    }


def _token_columns(session: Session, tokens: Tokens, parts: Parts, paths: Direct) -> dict[str, list[Any]]:
    S = len(tokens.ids_S)
    following: list[Any] = [None] * S
    words, kinds = list(following), list(following)
    if paths.next_S is not None:
        following = paths.next_S.tolist()
        words = session.lm.pieces(following)
        kinds = ["text"] * (S - 1) + ["predicted"]
    return {
        "position": list(range(S)),
        "token_id": tokens.ids_S.tolist(),
        "token": tokens.pieces,
        "special": tokens.special_S.tolist(),
        "outlier": tokens.outlier_S.tolist(),
        "counted": tokens.counted_S.tolist(),
        "norm": tokens.norm_S.tolist(),
        "latents": parts.codes.l0.tolist(),
        "fvu": parts.fvu_S.tolist(),
        "error_share": parts.error_share_S.tolist(),
        "skip_share": parts.skip_share_S.tolist(),
        "next_id": following,
        "next_token": words,
        "next_is": kinds,
    }


def _latents(
    tokens: Tokens, parts: Parts, known: Rates | None, labels: dict[int, str]
) -> dict[str, list[Any]]:
    """Return the columns of the latents that fired on tokens that count, most noteworthy first."""
    codes, T = parts.codes, int(tokens.counted_S.sum())
    mine_P = tokens.counted_S[codes.rows]
    row_P, value_P = codes.rows[mine_P], codes.values[mine_P].double()
    latent_I, place_P = codes.latents[mine_P].unique(return_inverse=True)
    count_I = torch.bincount(place_P, minlength=len(latent_I))
    sum_I = value_P.new_zeros(len(latent_I)).index_add(0, place_P, value_P)
    max_I = value_P.new_zeros(len(latent_I)).scatter_reduce(0, place_P, value_P, "amax")
    at_I = torch.full_like(latent_I, len(tokens.ids_S))
    best_P = value_P == max_I[place_P]
    at_I = at_I.scatter_reduce(0, place_P[best_P], row_P[best_P], "amin")
    columns: dict[str, Any] = {"sum": sum_I, "max": max_I, "at": at_I, "count": count_I}
    score_I, order = sum_I, None
    if known is not None:
        surprise_I = known.surprise(latent_I)
        tail_I = known.tail(latent_I, count_I, T)
        p_I = torch.from_numpy(holm(tail_I.cpu().numpy(), len(known.rate_F)))
        score_I = sum_I * surprise_I
        columns |= {"rate": known.rate_F[latent_I], "surprise": surprise_I}
        columns |= {"lift": count_I / (known.expected(latent_I) * T), "p": tail_I, "p_holm": p_I}
        columns["unusual"] = p_I <= LEVEL
    order = score_I.argsort(descending=True, stable=True)
    latents = latent_I[order].tolist()
    first = {"latent": latents, "label": [labels.get(each) for each in latents]}
    found = first | {"score": score_I[order].tolist()}
    found |= {key: each[order].tolist() for key, each in columns.items()}
    absent = ("rate", "surprise", "lift", "p", "p_holm", "unusual")
    return found | {key: [None] * len(latents) for key in absent if key not in found}


def _about(
    session: Session,
    text: Any,
    tokens: Tokens,
    parts: Parts,
    known: Rates | None,
    paths: Direct,
    top: int,
) -> dict[str, Any]:
    lm, d = session.lm, session.dictionary
    counted_S = tokens.counted_S
    trained, ids = d.place.context, tokens.ids_S.tolist()
    notes = []
    if trained is not None and len(ids) > trained:
        notes.append(
            f"training read at most {trained} tokens at a time; those behind them here have seen more"
        )
    if not bool(counted_S.any()):
        notes.append("every token is special or an outlier: nothing is ranked")
    return {
        "dictionary": repr(d),
        "folder": str(d.place.folder),
        "model": lm.name,
        **session.hooks,
        "given_as": "a text" if isinstance(text, str) else _kind(text),
        "prefix": [{"id": each, "token": lm.pieces([each])[0]} for each in lm.prefix],
        "suffix": [{"id": each, "token": lm.pieces([each])[0]} for each in lm.suffix],
        "tokens": len(ids),
        "counted": int(counted_S.sum()),
        "special": int(tokens.special_S.sum()),
        "outliers": int(tokens.outlier_S.sum()),
        "max_norm_multiple": multiple(session.dictionary),
        "fvu": parts.fvu(counted_S),
        "rates_rows": None if known is None else known.rows,
        "rates_reason": NOT_MEASURED if known is None else None,
        "effect_reason": paths.reason,
        "correlations": list(CORRELATIONS),
        "level": LEVEL,
        "top": top,
        "notes": notes,
    }


def _kind(text: Any) -> str:
    first = text[0] if len(text) else None
    return "messages, by the tokenizer's chat template" if isinstance(first, Mapping) else "token ids"
