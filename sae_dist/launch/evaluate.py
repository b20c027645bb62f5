"""`sae-dist eval`: from its words to a table."""

from pathlib import Path

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_dist.config.resolve import parse_counts
from sae_dist.config.run import RunConfig, load_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG
from sae_dist.launch.compose import parse

KEYS = ("tokens", "ce_tokens", "baselines", "corpus", "probes", "absorption", "controls")
FULL = "--full"


def eval_command(words: list[str]) -> None:
    """Evaluate a run's export, write eval.json, print its table.

    Raises:
        SaeDistError: see `core.errors`.
    """
    folder, overrides = understood([word for word in words if word != FULL])
    cfg = with_overrides(load_config(folder / CONFIG), overrides)
    from sae_dist.evaluation.evaluate import evaluate_folder
    from sae_dist.evaluation.table import format_evaluation

    print(format_evaluation(evaluate_folder(folder, cfg, full=FULL in words)))


def understood(words: list[str]) -> tuple[Path, list[str]]:
    """The run folder, and key=value words. A folder's name may hold an = too.

    Raises:
        ConfigError: an option that there is none of, or not exactly one folder.
    """
    for word in words:
        if word.startswith("-"):
            raise ConfigError(f"sae-dist eval has no option {word}; there is {FULL}, and eval.key=value")
    folders = [word for word in words if "=" not in word or "/" in word.split("=")[0] or Path(word).is_dir()]
    if len(folders) != 1:
        raise ConfigError(
            "sae-dist eval takes one run folder, such as outputs/my_run; see sae-dist eval --help"
        )
    return Path(folders[0]), [word for word in words if word != folders[0]]


def with_overrides(cfg: RunConfig, overrides: list[str]) -> RunConfig:
    """The config of a run with other values of `eval`, its counts parsed.

    Raises:
        ConfigError: another key, or a value of the wrong type.
    """
    changed = OmegaConf.structured(cfg)
    for text in overrides:
        override = parse(text)
        key = override.key_or_group
        if key not in [f"eval.{name}" for name in KEYS]:
            known = ", ".join(f"eval.{name}" for name in KEYS)
            raise ConfigError(
                f"{text}: a run that was trained is evaluated as it is; only {known} may change"
            )
        try:
            OmegaConf.update(changed, key, override.value())
        except OmegaConfBaseException:
            raise ConfigError(f"{text} has the wrong type; see sae-dist eval --help") from None
    found = OmegaConf.to_object(changed)
    assert isinstance(found, RunConfig)
    found = parse_counts(found)
    if overrides and found.eval.tokens == 0:
        raise ConfigError("eval.tokens=0 evaluates nothing; give more, such as eval.tokens=500k")
    return found
