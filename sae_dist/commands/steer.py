"""The command `sae-dist steer`: what changing a latent's code does to a model, with controls."""

import argparse
import shlex
from pathlib import Path
from typing import Any

from sae_dist.config.trust import REMOTE_CODE, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import print_line, show
from sae_dist.interpret.study.asked import (
    DOSES,
    HOWS,
    WORDS,
    Arm,
    Asked,
    arm_of,
    checked_arms,
    doses_of,
    whole_number,
)
from sae_dist.interpret.study.prompts import read_prompts
from sae_dist.launch.arguments import Parser

FEWEST_DRAWS, MOST_DRAWS = 2, 64


def help_text() -> str:
    """Return the help text."""
    return """\
Changes latents' codes while the model reads and writes, and measures what that does: on a target's
log-probability, on the distribution of next tokens, on the texts themselves. Each latent is a study of its
own. RUN is a run, an export, or an imported dictionary. An effect is claimed only where it is more than
chance (intervals over prompts, Holm over all latents and doses) and more than four controls at the same dose:
a random direction, a latent of equal rate, the wrong sign, another latent's decoder row.

Writes FOLDER/steer.html, without scripts, and FOLDER/steer.json with every number; prints what is claimed.

What is changed; each may be given several times:
  --clamp LATENT[=DOSE]   the code becomes the dose at every position
  --add LATENT[=DOSE]     the dose is added to the code
  --ablate LATENT         the code becomes 0
  --mean LATENT           the code becomes its mean over tokens
  --project-out LATENT    activations lose their component along the latent's decoder row
A DOSE is a code, or 4x: four times the 99.9th percentile of the latent's codes. It joins --doses.

  --doses NUMBERS         multiples of the 99.9th percentile (-1,0,.5,1,2,4,8)
  --prompts FILE          one prompt a line, or .jsonl with "prompt" and maybe "target" and "against"
                          (64 beginnings of held-out texts)
  --target TEXT           what may follow each prompt; claims are of its log-probability (of KL)
  --against TEXT          what that is compared with
  --tokens N              how many tokens are generated (32)
  --positions WORD        all, every (special tokens too), prompt, generated or last (all)
  --controls N            draws of each random control (8)
  --seed N                of draws and resampling (0)
  --model NAME            another model than the dictionary's own
  --out FOLDER            where to write (RUN/steer/NAME, NAME by what is changed)
  --force                 write over an earlier study; take a model of another name
  llm.trust_remote_code=true    run the code that the model brings along

Examples:
  sae-dist steer outputs/my_run --clamp 123=4x
  sae-dist steer outputs/my_run --clamp 123=4x --prompts prompts.txt --target " Paris" --against " Rome"
  sae-dist steer outputs/my_run --ablate 7 --ablate 9 --positions last
"""


def run(arguments: list[str]) -> None:
    """Make a study; print what is claimed and where the page is.

    Raises:
        ConfigError: an option is not valid, or does not fit the dictionary, the model or a file.
    """
    asked = asked_of(arguments)
    if asked.prompts is not None:
        read_prompts(asked.prompts, asked.target, asked.against)
    from sae_dist.interpret.study.study import run as run_study

    page, study = run_study(asked, _progress)
    for each in study.judgements:
        if each.claimed:
            show(each.words)
    if not any(each.claimed for each in study.judgements):
        show("Nothing is claimed; the page says why of each latent and dose.")
    show(page)


def asked_of(arguments: list[str]) -> Asked:
    """Read the options.

    Raises:
        ConfigError: one is not valid.
    """
    parser = Parser(prog="sae-dist steer", add_help=False, allow_abbrev=False)
    parser.add_argument("run")
    for how in HOWS:
        parser.add_argument(f"--{how}", dest="arms", action=_ArmAction, default=())
    for option in ("--doses", "--prompts", "--target", "--against", "--model", "--out"):
        parser.add_argument(option)
    for option, default in (("--tokens", "32"), ("--positions", "all"), ("--seed", "0"), ("--controls", "8")):
        parser.add_argument(option, default=default)
    parser.add_argument("--force", action="store_true")
    rest, granted = granted_by(arguments)
    given = parser.parse_args(_joined(rest))
    if given.positions not in WORDS:
        raise ConfigError(f"--positions {given.positions}: choose {', '.join(WORDS)}")
    if given.against is not None and given.target is None and given.prompts is None:
        raise ConfigError("--against needs --target")
    return Asked(
        where=given.run,
        arms=checked_arms(given.arms),
        doses=DOSES if given.doses is None else doses_of(given.doses),
        prompts=None if given.prompts is None else Path(given.prompts),
        target=given.target,
        against=given.against,
        tokens=whole_number(given.tokens, "--tokens", 1, 4096),
        positions=given.positions,
        seed=whole_number(given.seed, "--seed", 0, 2**31 - 1),
        controls=whole_number(given.controls, "--controls", FEWEST_DRAWS, MOST_DRAWS),
        model=given.model,
        out=None if given.out is None else Path(given.out),
        force=given.force,
        trust_remote_code=granted.get(REMOTE_CODE, False),
        command=shlex.join(["sae-dist", "steer", *arguments]),
    )


class _ArmAction(argparse.Action):
    """An option that adds an arm to the study, in the order in which they are written."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        """Add the arm that an option names."""
        arm: Arm = arm_of((option or "").removeprefix("--"), values)
        namespace.arms = (*namespace.arms, arm)


def _joined(arguments: list[str]) -> list[str]:
    """Return the arguments with `--doses -1,0` as one word: argparse takes -1,0 for an option."""
    found: list[str] = []
    for each in arguments:
        if found and found[-1] == "--doses":
            found[-1] = f"--doses={each}"
        else:
            found.append(each)
    return found


def _progress(done: int, of: int) -> None:
    if of > 1:
        print_line(f"sae-dist steer: {done} of {of} batches of prompts")
