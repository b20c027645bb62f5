"""Feature absorption, measured on first letters.

Chanin et al. 2024, "A is for Absorption", arXiv 2409.14507; the criterion is SAEBench's (arXiv 2503.09532),
which uses projections where the paper ablates. A latent for "begins with s" that is silent on some words
with s, because a latent of that word carries the direction too, has been absorbed there.

Simplified here: words are the tokens of letters alone in the held-out text, each at its place there, not in a
spelling prompt; the probe reads the activation at that very token. So a model that cannot spell is still
measured by what its activations say of their own token. Letters that no probe finds (F1 below 0.6 on other
words) are left out. Words of several tokens are not considered.

Letters: as core.types; N rows.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sae_dist.evaluation.probes.logistic import f1, fit
from sae_dist.evaluation.probes.probing import RowCodes, by_difference

MOST_ROWS = 20_000
PER_WORD = 8
LEAST_ROWS = 20
PROBE_F1 = 0.6
SPLIT_GAIN = 0.03
"""A further latent belongs to the same feature if it raises the F1 of the probe on latents by this much."""
MOST_SPLITS = 10
COSINE = 0.025
SHARE = 0.4
"""Least part of the activation's projection on the probe that one latent must carry to have absorbed it."""
TEST_ONE_IN = 5
STRENGTH = 1e-3


def absorption(
    codes: RowCodes, x_ND: Tensor, W_dec_FD: Tensor, word_N: Tensor, letter_N: Tensor
) -> dict[str, Any]:
    """Compute `absorption` of eval.json.

    rate     share of words whose letter the probe recognises, where that letter's latents are all silent
             and one other latent carries its direction: mean over letters
    latents  latents of a letter (feature splitting), mean over letters
    probe_f1, latents_f1  of the probe on the activation, and on those latents, on other words
    letters  each of these by letter, with the number of words behind it

    Args:
        codes, x_ND: of the same rows, which are words; x raw.
        W_dec_FD: decoder rows of an autoencoder.
        word_N: the number of each row's word; of each five words one is kept for tests. letter_N: 0 .. 25.
    """
    test_N = (word_N * 2654435761 % 2**32) % TEST_ONE_IN == 0
    found: dict[str, Any] = {}
    best = 0.0
    for letter in letter_N.unique().tolist():
        yes_N = letter_N == letter
        if min(int((yes_N & test_N).sum()), int((yes_N & ~test_N).sum())) < LEAST_ROWS:
            continue
        result = _of_letter(codes, x_ND, W_dec_FD, yes_N, test_N)
        best = max(best, result["probe_f1"])
        if "rate" in result:
            found[chr(ord("a") + letter)] = result
    if not found:
        reason = f"no first letter that a probe finds in the activations of other words (best F1 {best:.2f})"
        return {"absorption": None, "absorption_reason": reason}
    names = ("rate", "latents", "probe_f1", "latents_f1")
    means = {name: sum(each[name] for each in found.values()) / len(found) for name in names}
    return {"absorption": means | {"letters": found}}


def _of_letter(
    codes: RowCodes, x_ND: Tensor, W_dec_FD: Tensor, yes_N: Tensor, test_N: Tensor
) -> dict[str, Any]:
    """Compute the numbers of one letter; without `rate` if no probe finds it."""
    train, test = (~test_N).nonzero().squeeze(1), test_N.nonzero().squeeze(1)
    probe = fit(x_ND[train], yes_N[train], STRENGTH)
    score_N = probe.score(x_ND)
    probe_f1 = f1(score_N[test], yes_N[test])
    known = ((score_N > 0) & yes_N & test_N).nonzero().squeeze(1)
    if probe_f1 < PROBE_F1 or len(known) == 0:
        return {"probe_f1": probe_f1}
    main, latents_f1 = _main_latents(codes, yes_N, train, test)
    direction_D = normalize(probe.weight_D, dim=0).to(W_dec_FD.device, W_dec_FD.dtype)
    along_F = (W_dec_FD @ direction_D).double().cpu()
    cosine_F = (normalize(W_dec_FD, dim=1) @ direction_D).double().cpu()
    silent_N = (codes.columns(main, known) <= 0).all(1)
    value, latent = _strongest(codes, along_F, known)
    whole_N = x_ND[known].double() @ direction_D.double().cpu()
    taken_N = (cosine_F[latent] >= COSINE) & (whole_N > 0) & (value >= SHARE * whole_N)
    return {
        "rate": float((silent_N & taken_N).double().mean()),
        "words": len(known),
        "latents": len(main),
        "probe_f1": probe_f1,
        "latents_f1": latents_f1,
    }


def _main_latents(codes: RowCodes, yes_N: Tensor, train: Tensor, test: Tensor) -> tuple[Tensor, float]:
    """Find the latents of the letter; return them and the F1 of a probe on them."""
    order_F = by_difference(codes, train[yes_N[train]], train[~yes_N[train]], signed=True)
    best = -1.0
    for k in range(1, min(MOST_SPLITS, codes.latents) + 1):
        probe = fit(codes.columns(order_F[:k], train), yes_N[train], STRENGTH)
        reached = f1(probe.score(codes.columns(order_F[:k], test)), yes_N[test])
        if k > 1 and reached < best + SPLIT_GAIN:
            return order_F[: k - 1], best
        best = reached
    return order_F[: min(MOST_SPLITS, codes.latents)], best


def _strongest(codes: RowCodes, along_F: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each wanted row the largest part that a latent adds along the direction, and the latent."""
    place_N = torch.full((codes.rows,), -1, dtype=torch.int64)
    place_N[wanted] = torch.arange(len(wanted))
    place_P = place_N[codes.row_P]
    kept_P = place_P >= 0
    place_P, latent_P = place_P[kept_P], codes.latent_P[kept_P]
    part_P = codes.value_P[kept_P].double() * along_F[latent_P]
    most = torch.zeros(len(wanted), dtype=torch.float64).scatter_reduce_(0, place_P, part_P, "amax")
    latent = torch.zeros(len(wanted), dtype=torch.int64)
    first_P = part_P >= most[place_P]
    latent[place_P[first_P]] = latent_P[first_P]
    return most, latent


def letters_of(words: list[str]) -> Tensor:
    """Return the first letter, 0 .. 25, of words of two or more letters a to z, else -1: [V].

    A space before the word is ignored.
    """
    found = []
    for word in words:
        bare = word.removeprefix(" ").lower()
        plain = len(bare) > 1 and bare.isascii() and bare.isalpha()
        found.append(ord(bare[0]) - ord("a") if plain else -1)
    return torch.tensor(found)


def few_of_each(ids_N: Tensor, letter_N: Tensor) -> Tensor:
    """Choose rows of words, ascending: the first PER_WORD of each word, at most MOST_ROWS."""
    seen: dict[int, int] = {}
    rows = []
    for row in (letter_N >= 0).nonzero().squeeze(1).tolist():
        number = int(ids_N[row])
        seen[number] = seen.get(number, 0) + 1
        if seen[number] <= PER_WORD:
            rows.append(row)
    return torch.tensor(rows[:MOST_ROWS], dtype=torch.int64)
