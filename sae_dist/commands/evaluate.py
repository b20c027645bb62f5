"""The command `sae-dist eval`: the quality of a run's export, in a table."""

from pathlib import Path

from sae_dist.commands.arguments import without
from sae_dist.config.grid import run_of
from sae_dist.config.plain import fitting
from sae_dist.config.run import Resolved, RunConfig, granted_config, narrowed, parse_counts, schema
from sae_dist.config.secrets import check_secrets
from sae_dist.config.sections import EvalConfig
from sae_dist.config.trust import LLM, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.owner import owning
from sae_dist.core.run_folder import CONFIG
from sae_dist.core.text import show
from sae_dist.evaluation.asked import check_files
from sae_dist.launch.identity import caution
from sae_dist.launch.overrides import parse

KEYS = ("tokens", "ce_tokens", "baselines", "corpus", "probes", "absorption", "controls")
FULL = "--full"


def help_text() -> str:
    """Return the help text."""
    return """\
Evaluates the export in a run folder on held-out data. Prints a table; writes RUN/eval.json, figures in
RUN/plots, and RUN/summary.json as the end of training does. sae_dist/evaluation/README.md defines every
number.

Always: FVU (also of single tokens, and of those of ordinary length), explained variance, L0, dead, dense and
silent latents, shrinkage, cross-entropy and KL of the spliced model, density, redundancy of decoder rows.

  --full                    also probes on Python's own tokens, absorption and controls, and redundancy
                            however many latents there are
  eval.probes=FILE.jsonl    k-sparse probing on your texts, a "text" and a "label" a line; eval.probes=python
  eval.absorption=true      first-letter absorption
  eval.controls=true        the same dictionary on a random LM, and on shuffled activations
  eval.corpus=PATH          FVU on another text too: a file, or a folder
  eval.tokens=500k          held-out activations; eval.ce_tokens=64k: tokens for cross-entropy and KL
  eval.baselines=false      without PCA and the untrained dictionary
  llm.trust_remote_code=true  run the code that the run's model brings along; a run folder does not grant it

One process; the dictionary must fit into its memory, or its GPU's. To evaluate during training: sae-dist
train eval.every=500k.

Examples:
  sae-dist eval outputs/my_run
  sae-dist eval outputs/my_run --full eval.corpus=my_texts/
  sae-dist train llm.random_init=true name=control    # the same dictionary on a random LM: a control to train
"""


def run(arguments: list[str]) -> None:
    """Evaluate a run's export, write eval.json, print its table.

    Raises:
        SaeDistError: see `core.errors`.
    """
    rest, full = without(arguments, FULL)
    rest, granted = granted_by(rest)
    folder, overrides = understood(rest)
    cfg = with_overrides(granted_config(folder / CONFIG, granted, LLM), overrides)
    with owning(run_of(folder), "evaluated"):
        check_files(folder, cfg)
        caution(cfg, folder)
        from sae_dist.evaluation.evaluate import evaluate_folder
        from sae_dist.evaluation.table import format_evaluation

        show(format_evaluation(evaluate_folder(folder, cfg, full=full)))


def understood(arguments: list[str]) -> tuple[Path, list[str]]:
    """Return the run folder and the key=value arguments. A folder's name may hold an = too.

    Raises:
        ConfigError: an unknown option, or not exactly one folder.
    """
    for argument in arguments:
        if argument.startswith("-"):
            raise ConfigError(f"sae-dist eval has no option {argument}; there is {FULL}, and eval.key=value")
    folders = [
        each for each in arguments if "=" not in each or "/" in each.split("=")[0] or Path(each).is_dir()
    ]
    if len(folders) != 1:
        raise ConfigError(
            "sae-dist eval needs one run folder, such as outputs/my_run; see sae-dist eval --help"
        )
    return Path(folders[0]), [each for each in arguments if each != folders[0]]


def with_overrides(cfg: Resolved, overrides: list[str]) -> Resolved:
    """Return the config of a run with other values of `eval`.

    Raises:
        ConfigError: another key, or a value of the wrong type.
    """
    changed, kinds = dict(vars(cfg.eval)), schema()
    for text in overrides:
        override = parse(text)
        key = override.key_or_group
        if key not in [f"eval.{name}" for name in KEYS]:
            known = ", ".join(f"eval.{name}" for name in KEYS)
            raise ConfigError(
                f"{text}: a run that was trained is evaluated as it is; only {known} may change"
            )
        value = override.value()
        if kinds[key] == str | None and value is not None:
            value = str(value)
        try:
            changed[key.removeprefix("eval.")] = fitting(value, kinds[key], key)
        except ValueError:
            raise ConfigError(f"{text} has the wrong type; see sae-dist eval --help") from None
    asked = RunConfig(**vars(cfg) | {"eval": EvalConfig(**changed)})
    found = narrowed(type(cfg), parse_counts(asked))
    check_secrets(found)
    if overrides and found.eval.tokens == 0:
        raise ConfigError("eval.tokens=0 evaluates nothing; give more, such as eval.tokens=500k")
    return found
