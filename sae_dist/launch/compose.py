"""The config of a run, composed by Hydra from the command line's overrides; its errors become one line."""

import copy
from functools import lru_cache
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sae_dist.config.grid import SETS
from sae_dist.config.run import RunConfig, register
from sae_dist.config.secrets import check_secrets, check_taken
from sae_dist.config.trust import executing, word
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line, quoted
from sae_dist.launch.option_errors import in_words
from sae_dist.launch.options import DEFAULTS, check_own_files, conf_folders, data_folder
from sae_dist.launch.overrides import for_several, is_value, parse, type_in_words, written


def compose_config(overrides: list[str]) -> RunConfig:
    """Return the config of one run, with counts and open fields as they were written.

    Raises:
        ConfigError: an override with an unknown key or option or a value of the wrong type, a field that must
            be given and is not, or a password.
    """
    composed = _compose(overrides)
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise ConfigError(f"{missing[0]} must be given: write {missing[0]}=...")
        check_taken(OmegaConf.to_container(composed, resolve=False))
        found = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise _explain(error, []) from None
    assert isinstance(found, RunConfig)
    check_secrets(found)
    _check_granted(found, [parse(text) for text in overrides])
    return found


def _check_granted(cfg: RunConfig, parsed: list[Override]) -> None:
    """Check that what runs code is on the command line; a job's lines may be in the file that cluster= names.

    Raises:
        ConfigError: another file of conf/ sets it, such as conf/local/default.yaml.
    """
    given = {override.key_or_group for override in parsed if is_value(override)}
    asked = {key: value for key, value in executing(cfg).items() if key not in given}
    if not asked:
        return
    named = [override.input_line or "" for override in parsed if override.key_or_group == "cluster"]
    # Without conf/local/default.yaml, which no word names.
    without = ["~local"] if any((folder / DEFAULTS).is_file() for folder in conf_folders()) else []
    alone = _of_options((*named, *without), _files())
    for key, value in asked.items():
        if key.startswith("cluster.") and OmegaConf.select(alone, key) == value:
            continue
        lines = "; a file conf/cluster/NAME.yaml may have it, where you write cluster=NAME"
        raise ConfigError(
            f"a file of conf/ sets {key}, which runs code and is never taken from a file that is not asked "
            f"for: write {quoted(word(key, value))}{lines if key.startswith('cluster.') else ''}"
        )


def print_config(overrides: list[str]) -> str:
    """Return the composed config as YAML; what must still be given is `???`."""
    return OmegaConf.to_yaml(_compose(overrides))


def _compose(overrides: list[str]) -> DictConfig:
    parsed = [parse(text) for text in overrides]
    for override in parsed:
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} lists several values; {for_several(override)}")
    _check_twice(parsed)
    values = {override.key_or_group: override for override in parsed if is_value(override)}
    options = [override.input_line or "" for override in parsed if not is_value(override)]
    try:
        composed = copy.deepcopy(_of_options(tuple(options), _files()))
        # A width given here replaces the one that a group gave, however that was written.
        for given, other in (("sae.num_latents", "sae.expansion"), ("sae.expansion", "sae.num_latents")):
            if given in values and other not in values:
                OmegaConf.update(composed, other, None)
        for key, override in values.items():
            OmegaConf.update(composed, key, override.value(), merge=True)
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        if (line := in_words(error)) is not None:
            raise ConfigError(line) from None
        raise _explain(error, parsed) from None
    return composed


def _files() -> tuple[tuple[Path, int], ...]:
    """Return the files that a config is composed of, each with the time of its last change."""
    found = (file for folder in conf_folders() for file in sorted(folder.rglob("*.yaml")))
    return tuple((file, file.stat().st_mtime_ns) for file in found)


@lru_cache(maxsize=64)
def _of_options(options: tuple[str, ...], files: tuple[tuple[Path, int], ...]) -> DictConfig:
    """Compose the files that options name; kept, since it takes a third of a second, and values far less."""
    register()
    for folder in conf_folders()[1:]:
        check_own_files(folder)
    lines = [*options, *(f"hydra.searchpath=[{written(f'file://{each}')}]" for each in conf_folders()[1:])]
    with initialize_config_dir(str(data_folder("conf").resolve()), version_base="1.3"):
        return hydra_compose("train", overrides=lines)


def _check_twice(parsed: list[Override]) -> None:
    given = {override.key_or_group: override.input_line for override in parsed}
    varied = [(f"grid.{key}", sets) for key, sets in SETS.items() if not key.endswith("hook")]
    varied.append(("grid.hook_num_latents", "sae.expansion"))
    for listed, single in [*varied, ("grid.num_latents", "sae.expansion")]:
        if listed in given and single in given:
            raise ConfigError(f"{given[listed]} and {given[single]} are both given; give one")


def _explain(error: BaseException, parsed: list[Override]) -> ConfigError:
    """Return an error of OmegaConf or Hydra as one line that names the override."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    # Of an item of a list, grid.k[1], the list.
    key = (getattr(cause, "full_key", None) or "").partition("[")[0]
    for override in parsed:
        if key == override.key_or_group:
            text = (override.input_line or "").lstrip("+")
            return ConfigError(f"{text} has the wrong type; {key} takes {type_in_words(key)}")
    reason = first_line(cause or error)
    return ConfigError(f"{key}: {reason}" if key else reason)
