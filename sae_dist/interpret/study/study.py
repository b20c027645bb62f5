"""A study of steering, from what is asked to a page and a JSON file.

Letters: as core.types; N prompts, C conditions.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json
from sae_dist.core.run_folder import CONFIG
from sae_dist.export.statistics import CodeStatistics
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.load import load
from sae_dist.interpret.model import LanguageModel, check_same, model
from sae_dist.interpret.steer import LARGE
from sae_dist.interpret.study.asked import Asked
from sae_dist.interpret.study.claims import FEWEST_PROMPTS, Judgement, judged
from sae_dist.interpret.study.conditions import STEERED, Condition, Hypothesis, conditions, hypotheses
from sae_dist.interpret.study.effects import KL, TARGET, Effects, measure
from sae_dist.interpret.study.prompts import Prompt, default_prompts, held_out_texts, read_prompts, tokenised

FOLDER, PAGE, RESULTS = "steer", "steer.html", "steer.json"
SAID = {TARGET: "the target's log-probability", KL: "the distance (KL) from the model as it is"}
"""The measures that claims are made of: the target's where there is one."""
MEASURED_TOKENS = 50_000
"""On how many tokens latents are measured whose codes never were, and which no run trained."""
SHORT_OF_MODEL = 2.0
"""The log-perplexity, in nats a token above the model's own text, from which a text is called broken."""


@dataclass(frozen=True)
class Study:
    """A study that was made.

    Attributes:
        primary: the measure that claims are made of.
        judgements: one for each hypothesis.
        warned: what to keep in mind.
    """

    asked: Asked
    dictionary: Dictionary
    lm: LanguageModel
    prompts: list[Prompt]
    hypotheses: list[Hypothesis]
    conditions: list[Condition]
    effects: Effects
    primary: str
    judgements: list[Judgement]
    warned: list[str]


def run(asked: Asked, progress: Callable[[int, int], None] = lambda done, of: None) -> tuple[Path, Study]:
    """Make a study and write its page; return the page's path.

    Raises:
        ConfigError: see `made`; or the folder has another study.
    """
    folder = out_folder(asked)
    from sae_dist.interpret.study.page import rendered
    from sae_dist.interpret.study.written import as_json

    study = made(asked, progress)
    content, page = as_json(study), rendered(study)
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_json(temporary / RESULTS, content)
    (temporary / PAGE).write_text(page, encoding="utf-8")
    folder.mkdir(exist_ok=True)
    for name in (RESULTS, PAGE):
        (temporary / name).replace(folder / name)
    temporary.rmdir()
    return folder / PAGE, study


def out_folder(asked: Asked) -> Path:
    """Return the folder to write, which holds no other study.

    Raises:
        ConfigError: it does, and `force` is not given; or it is a file.
    """
    where = Path(asked.where).expanduser()
    base = where / FOLDER if (where / CONFIG).is_file() else Path(FOLDER)
    folder = asked.out if asked.out is not None else base / asked.name
    if folder.is_file():
        raise ConfigError(f"--out {folder} is a file; give a folder")
    if any((folder / name).exists() for name in (PAGE, RESULTS)) and not asked.force:
        raise ConfigError(f"{folder} has a study already; give --force to write over it, or --out FOLDER")
    return folder


def opened(
    where: str, name: str | None, force: bool, trust_remote_code: bool
) -> tuple[Dictionary, LanguageModel]:
    """Open a dictionary and its model, or another; `trust_remote_code`: see `interpret.model.model`.

    Raises:
        ConfigError: one cannot be opened, or the model does not generate, or is not the dictionary's.
    """
    dictionary = load(where)
    lm = model(dictionary, name, trust_remote_code=trust_remote_code)
    check_same(dictionary, lm, force)
    if not lm.causal:
        raise ConfigError(f"{lm.name} is an encoder and predicts no next token: there is nothing to steer")
    return dictionary, lm


def with_statistics(dictionary: Dictionary, lm: LanguageModel) -> tuple[Dictionary, CodeStatistics]:
    """Return the dictionary with the statistics of its latents, which are measured if they never were.

    Raises:
        ConfigError: there is no text to measure them on.
    """
    statistics = dictionary.place.statistics(dictionary.num_latents)
    if statistics is None:
        from sae_dist.interpret.measure import measure as measure_codes

        run = dictionary.place.run
        if run is not None and run.has_llm:
            statistics = measure_codes(dictionary, lm, force=True)
        else:
            texts = held_out_texts(dictionary, lm, MEASURED_TOKENS)
            statistics = measure_codes(dictionary, lm, texts=texts, force=True)
    return Dictionary(dictionary.sae, replace(dictionary.place, measured=statistics)), statistics


def made(asked: Asked, progress: Callable[[int, int], None] = lambda done, of: None) -> Study:
    """Make a study.

    Raises:
        ConfigError: what is asked does not fit the dictionary or the model, or a file is not what it should
            be.
    """
    files = None if asked.prompts is None else read_prompts(asked.prompts, asked.target, asked.against)
    dictionary, lm = opened(asked.where, asked.model, asked.force, asked.trust_remote_code)
    dictionary.checked([each.latent for each in asked.arms])
    if files is None:
        prompts = default_prompts(dictionary, lm, asked.target, asked.against, asked.tokens)
    else:
        prompts = tokenised(lm, files, asked.tokens)
    if asked.positions == "generated" and any(len(each.target) == 1 for each in prompts):
        raise ConfigError(
            "--positions generated changes nothing before the first token that follows a prompt, which is "
            "the target; give --positions all, or no --target"
        )
    dictionary, statistics = with_statistics(dictionary, lm)
    found = hypotheses(asked.arms, asked.doses, statistics)
    all_of = conditions(dictionary, found, statistics, draws=asked.controls, seed=asked.seed)
    effects = measure(
        dictionary,
        lm,
        prompts,
        all_of,
        tokens=asked.tokens,
        positions=asked.positions,
        progress=progress,
    )
    primary = TARGET if TARGET in effects.of else KL
    judgements = judged(found, all_of, effects.of[primary], seed=asked.seed, what=SAID[primary])
    warned = _warnings(asked, found, all_of, effects, prompts, statistics)
    return Study(asked, dictionary, lm, prompts, found, all_of, effects, primary, judgements, warned)


def _warnings(
    asked: Asked,
    found: list[Hypothesis],
    all_of: list[Condition],
    effects: Effects,
    prompts: list[Prompt],
    statistics: CodeStatistics,
) -> list[str]:
    warned = []
    if len(prompts) < FEWEST_PROMPTS:
        warned.append(f"{len(prompts)} prompts are too few to claim anything; give {FEWEST_PROMPTS} or more.")
    own = {each.hypothesis: n for n, each in enumerate(all_of) if each.kind == STEERED}
    large = [str(found[h]) for h, n in own.items() if effects.largest[n] > LARGE]
    if large:
        warned.append(
            f"The change exceeds {LARGE:g} of the median norm of activations, where a model may leave what "
            f"it was trained on: {', '.join(large)}."
        )
    broken = [
        str(found[h]) for h, n in own.items() if np.mean(effects.of["perplexity"][:, n]) > SHORT_OF_MODEL
    ]
    if broken:
        warned.append(
            f"Texts are unlike the model's own, by more than {SHORT_OF_MODEL:g} nats a token: "
            f"{', '.join(broken)}."
        )
    idle = [str(found[h]) for h, n in own.items() if effects.changed[n] == 0]
    if idle:
        warned.append(
            f"Nothing was changed, since the latent was silent or has that code: {', '.join(idle)}."
        )
    rare = sorted(
        {each.latent for each in found if float(statistics.rate_F[each.latent]) * statistics.rows < 1000}
    )
    if rare:
        named = ", ".join(map(str, rare))
        warned.append(
            f"The unit of doses is a 99.9th percentile, and these fired less than 1000 times on "
            f"{statistics.rows:,} rows, so that it is nearly their greatest code: {named}."
        )
    if effects.approximate:
        warned.append(f"Codes are estimated: {effects.approximate}.")
    if asked.model is not None:
        warned.append(f"The model was named: {asked.model}.")
    return warned
