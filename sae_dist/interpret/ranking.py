"""Latents ranked by what removing them does to the token that a model predicts.

Gradient times code, from one backward pass a prompt, chooses candidates; each is then removed for real.
Letters: as core.types; N prompts, C candidates, M draws of a control.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.interventions import ablate
from sae_dist.interpret.model import LanguageModel
from sae_dist.interpret.statistics import LEVEL, Floats, agreement, estimates, holm, reach_of_draws
from sae_dist.interpret.study.claims import FEWEST_PROMPTS, not_passed, part
from sae_dist.interpret.study.conditioned import Conditioned
from sae_dist.interpret.study.conditions import STEERED, Condition, equally_often
from sae_dist.interpret.study.prompts import Prompt, default_prompts, read_prompts, tokenised
from sae_dist.interpret.study.scoring import Batch, batches, logits, wide
from sae_dist.interpret.study.study import opened

CONTROL = "latents that fire as often here"


@dataclass(frozen=True)
class Ranked:
    """A latent, and what removing it does to the metric.

    Attributes:
        prompts: on how many it fires.
        predicted: by gradient times code.
        exact: the mean over prompts of the metric without it, minus with it.
        lower, upper: interval of that.
        adjusted: p-value by Holm over all latents that fired on the prompts.
        control: interval of removing latents that fire as often on these prompts.
        marked: the effect is more than chance, and outside the control's interval, as one in twenty is.
    """

    latent: int
    prompts: int
    predicted: float
    exact: float
    lower: float
    upper: float
    adjusted: float
    control: tuple[float, float]
    marked: bool


@dataclass(frozen=True)
class Ranking:
    """The latents that matter most for a metric, largest effect first.

    Attributes:
        metric: in words.
        mean: the metric of the model as it is, mean over prompts.
        fired: how many latents fire on the prompts.
        sign, rank: how well gradient times code predicts what removing does, over the candidates: the share
            with the right sign, and Spearman's correlation.
    """

    model: str
    hook: str | None
    metric: str
    num_prompts: int
    mean: float
    fired: int
    candidates: int
    draws: int
    sign: float
    rank: float
    rows: list[Ranked]


def ranked(
    where: str,
    *,
    prompts: Path | None = None,
    target: str | None = None,
    against: str | None = None,
    top: int = 20,
    candidates: int = 200,
    draws: int = 8,
    seed: int = 0,
    name: str | None = None,
    force: bool = False,
    trust_remote_code: bool = False,
) -> Ranking:
    """Open a dictionary and its model, and rank its latents; `commands.ablate` explains the arguments.

    Raises:
        ConfigError: one cannot be opened or does not generate; or the prompts are not what they should be.
    """
    files = None if prompts is None else read_prompts(prompts, target, against)
    dictionary, lm = opened(where, name, force, trust_remote_code)
    if files is None:
        found = default_prompts(dictionary, lm, target, against, 1)
    else:
        found = tokenised(lm, files, 1)
    return ranking(dictionary, lm, found, top=top, candidates=candidates, draws=draws, seed=seed)


def ranking(
    dictionary: Dictionary,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    *,
    top: int,
    candidates: int,
    draws: int = 8,
    seed: int = 0,
) -> Ranking:
    """Rank latents by the exact effect of removing each at every token but special ones.

    The metric is the logit of the target's first token, or of the model's own next token, minus that of what
    it is against, or minus the mean logit.

    Raises:
        ConfigError: no latent fires on the prompts.
    """
    wanted = with_targets(lm, prompts)
    predicted_F, count_F = predictions(dictionary, lm, wanted)
    fired = np.flatnonzero(count_F)
    if not len(fired):
        raise ConfigError("no latent fires on the prompts; give other ones")
    chosen = [int(fired[n]) for n in _largest(predicted_F[fired])[:candidates]]
    clean_N, effect_NC = removed(dictionary, lm, wanted, chosen)
    found = estimates(effect_NC, seed)
    # Those that were not chosen are part of the family: the choice looked at all that fired.
    adjusted_C = holm(np.concatenate([found.p_C, np.ones(len(fired) - len(chosen))]))[: len(chosen)]
    lower_C, upper_C = found.intervals()
    shown = _largest(found.mean_C)[:top]
    reaches = _controls(dictionary, lm, wanted, count_F, [chosen[n] for n in shown], draws, seed)
    rows = []
    for n, reach in zip(shown, reaches, strict=True):
        interval = float(lower_C[n]), float(upper_C[n])
        chance = adjusted_C[n] > LEVEL or len(prompts) < FEWEST_PROMPTS
        rows.append(
            Ranked(
                chosen[n],
                int(count_F[chosen[n]]),
                float(predicted_F[chosen[n]]),
                float(found.mean_C[n]),
                *interval,
                float(adjusted_C[n]),
                reach,
                marked=not chance and not not_passed(interval, {CONTROL: reach}),
            )
        )
    sign, rank = agreement(predicted_F[chosen], found.mean_C)
    about = lm.name, dictionary.hook, _in_words(prompts), len(prompts), float(clean_N.mean())
    return Ranking(*about, len(fired), len(chosen), draws, sign, rank, rows)


def with_targets(lm: LanguageModel, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Return prompts with one target token each: the first of the target's, or the model's own next token."""
    found = []
    for each in prompts:
        if each.target:
            found.append(replace(each, target=each.target[:1], against=each.against[:1]))
            continue
        batch = Batch.of([each.ids], [[0]], lm)
        best = int(logits(lm, batch)[0, 0].argmax())
        found.append(replace(each, target=(best,), against=()))
    return found


def metric(logit_NV: Tensor, prompts: Sequence[Prompt]) -> Tensor:
    """Return the metric of each prompt [N] from the logits at its last token."""
    target_N = torch.tensor([each.target[0] for each in prompts], device=logit_NV.device)
    found_N = logit_NV.gather(1, target_N[:, None]).squeeze(1)
    if not prompts[0].against:
        return found_N - logit_NV.mean(1)
    against_N = torch.tensor([each.against[0] for each in prompts], device=logit_NV.device)
    return found_N - logit_NV.gather(1, against_N[:, None]).squeeze(1)


def predictions(
    dictionary: Dictionary, lm: LanguageModel, prompts: Sequence[Prompt]
) -> tuple[Floats, Floats]:
    """Return what removing each latent would do if the metric were linear [F], mean over prompts.

    It is minus gradient times code, summed over tokens. Also, on how many prompts each latent fires [F].
    """
    total_F = np.zeros(dictionary.num_latents)
    count_F = np.zeros(dictionary.num_latents)
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.int64, device=lm.device)
    for each in prompts:
        ids_1S = torch.tensor([each.ids], device=lm.device)
        with torch.enable_grad(), dictionary.attach(lm, force=True) as attached:
            out = lm.model(input_ids=ids_1S, attention_mask=torch.ones_like(ids_1S), use_cache=False)
            codes = attached.codes
            assert codes is not None
            metric(wide(out.logits[:, -1]), [each]).sum().backward()
        gradient_P = codes.values.grad
        assert gradient_P is not None, "the metric depends on the hook"
        ordinary_P = ~torch.isin(ids_1S[0], special)[codes.rows.to(ids_1S.device)].to(gradient_P.device)
        effect_P = torch.where(ordinary_P, -gradient_P * codes.values.detach(), 0.0)
        latent_P = codes.latents.cpu().numpy()
        np.add.at(total_F, latent_P, effect_P.double().cpu().numpy())
        count_F[np.unique(latent_P[ordinary_P.cpu().numpy()])] += 1
    return total_F / len(prompts), count_F


def removed(
    dictionary: Dictionary, lm: LanguageModel, prompts: Sequence[Prompt], latents: Sequence[int]
) -> tuple[Floats, Floats]:
    """Remove each latent alone, at every token but special ones.

    Returns:
        The metric of the model as it is [N], and by how much it changes without each latent [N, C].
    """
    clean_N, effect_NC = np.zeros(len(prompts)), np.zeros((len(prompts), len(latents)))
    sessions = [
        Conditioned(dictionary, lm, Condition(n, STEERED, 0, each, ablate()), "all")
        for n, each in enumerate(latents)
    ]
    special = torch.tensor(sorted(lm.special_ids), dtype=torch.int64, device=lm.device)
    for rows in batches(lm, [len(each.ids) for each in prompts], 1):
        own = [prompts[row] for row in rows]
        batch = Batch.of([each.ids for each in own], [each.target for each in own], lm)
        # The dictionary is applied once: what each session would encode is the same.
        with torch.no_grad(), dictionary.attach(lm, force=True) as attached:
            before_N = metric(logits(lm, batch)[:, 0], own)
        codes = attached.codes
        assert codes is not None
        meant_NS = (batch.mask_NS != 0) & torch.isin(batch.ids_NS, special, invert=True)
        clean_N[rows] = before_N.double().cpu().numpy()
        for n, session in enumerate(sessions):
            code_NS = codes.of_latent(latents[n])
            meant = meant_NS.to(code_NS.device)
            if not bool((code_NS * meant).any()):
                continue
            session.known = {latents[n]: code_NS[meant][:, None]}
            after_N = metric(logits(lm, batch, session)[:, 0], own)
            effect_NC[rows, n] = (after_N.double() - before_N.double()).cpu().numpy()
    return clean_N, effect_NC


def as_json(found: Ranking) -> dict[str, Any]:
    """Return a ranking as JSON-able values."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(each) for each in value]
        return value if not isinstance(value, float) or np.isfinite(value) else None

    rows = [{name: plain(each) for name, each in asdict(row).items()} for row in found.rows]
    return {name: plain(value) for name, value in asdict(found).items()} | {"rows": rows}


def _controls(
    dictionary: Dictionary,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    count_F: Floats,
    latents: Sequence[int],
    draws: int,
    seed: int,
) -> list[tuple[float, float]]:
    """Return, for each latent, the interval of removing latents that fire as often on the prompts."""
    drawn = [equally_often(count_F, n, draws, np.random.default_rng([seed, n])) for n in latents]
    others = sorted({each for own in drawn for each in own})
    if not others:
        return [(0.0, 0.0) for _ in latents]
    control = estimates(removed(dictionary, lm, prompts, others)[1], seed)
    return [reach_of_draws(part(control, [others.index(each) for each in own])) for own in drawn]


def _largest(value_C: Floats) -> list[int]:
    return [int(n) for n in np.argsort(-np.abs(value_C), kind="stable")]


def _in_words(prompts: Sequence[Prompt]) -> str:
    target = "the target's first token" if prompts[0].target else "the model's own next token"
    return (
        f"logit of {target} minus {'that of what it is against' if prompts[0].against else 'the mean logit'}"
    )
