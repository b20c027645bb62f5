"""Overrides to a config, by Hydra; what users get wrong is answered in one line."""

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_dist.core.config import RunConfig, register
from sae_dist.core.errors import ConfigError
from sae_dist.core.resolve import known_keys

PEERS_WORDS = {
    "d_sae": "sae.num_latents",
    "dict_size": "sae.num_latents",
    "num_latents": "sae.num_latents",
    "n_dirs": "sae.num_latents",
    "expansion_factor": "sae.expansion",
    "expansion": "sae.expansion",
    "k": "sae.k",
    "top_k": "sae.k",
    "hook_name": "hook",
    "hook_point": "hook",
    "hookpoint": "hook",
    "hookpoints": "hook",
    "layer": "hook",
    "training_tokens": "train_tokens",
    "total_training_tokens": "train_tokens",
    "batch_size": "batch",
    "train_batch_size_tokens": "batch",
    "lr": "optim.lr",
    "learning_rate": "optim.lr",
    "model": "llm.name",
    "model_name": "llm.name",
    "dataset": "tokens.dataset",
    "dataset_path": "tokens.dataset",
    "context_size": "tokens.context",
    "ctx_len": "tokens.context",
    "run_name": "name",
    "auxk_alpha": "sae.aux_coefficient",
    "k_aux": "sae.aux_k",
}


def data_folder(name: str) -> Path:
    """conf/ or slurm/: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def groups() -> dict[str, list[str]]:
    """Config groups and their options."""
    return {
        folder.name: sorted(path.stem for path in folder.glob("*.yaml"))
        for folder in sorted(data_folder("conf").iterdir())
        if folder.is_dir()
    }


def compose_config(overrides: list[str]) -> RunConfig:
    """The config of one run.

    Raises:
        ConfigError: an override is malformed, names no key, or does not fit its type.
    """
    node = _compose(overrides)
    missing = sorted(OmegaConf.missing_keys(node))
    if missing:
        raise ConfigError(f"{missing[0]} is missing; give {missing[0]}=...")
    cfg = OmegaConf.to_object(node)
    assert isinstance(cfg, RunConfig)
    return cfg


def print_config(overrides: list[str]) -> str:
    """The composed config as YAML, as far as it is given."""
    return OmegaConf.to_yaml(_compose(overrides))


def expand(overrides: list[str]) -> list[list[str]]:
    """A multirun's jobs: the product of all comma lists, in the order of the command line."""
    jobs: list[list[str]] = [[]]
    for override in _parse(overrides):
        key = override.get_key_element()
        if override.is_sweep_override():
            choices = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices = [override.input_line or ""]
        jobs = [[*job, choice] for job in jobs for choice in choices]
    return jobs


def sweep_keys(overrides: list[str]) -> list[str]:
    """Keys that a multirun varies."""
    return [override.key_or_group for override in _parse(overrides) if override.is_sweep_override()]


def _compose(overrides: list[str]) -> DictConfig:
    for override in _parse(overrides):
        if override.is_sweep_override():
            raise ConfigError(f"{override.input_line} gives several values; a multirun needs -m: sae-dist train -m ...")
        _check_key(override)
    register()
    try:
        with _hydra():
            return compose("train", overrides=overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from None


@contextmanager
def _hydra() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(data_folder("conf")), version_base="1.3"):
        yield


def _parse(overrides: list[str]) -> list[Override]:
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            raise ConfigError(f"{text} is not an override; write key=value, such as sae.k=32") from None
    return parsed


def _check_key(override: Override) -> None:
    """Refuse a key that does not exist; name ours where it is a peer's word, else the nearest."""
    key, options = override.key_or_group, groups()
    if key in options:
        choice = override.value()
        if choice is not None and choice not in options[key]:
            near = difflib.get_close_matches(str(choice), options[key], n=1)
            hint = f"; did you mean {key}={near[0]}?" if near else ""
            raise ConfigError(f"{key}={choice} is unknown; {key} is one of {', '.join(options[key])}{hint}")
        return
    keys = [name for name in known_keys() if name not in options]
    if override.is_delete() or override.is_add() or key not in keys:
        if key in PEERS_WORDS:
            raise ConfigError(f"{key} is called {PEERS_WORDS[key]} here; write {PEERS_WORDS[key]}=...")
        near = difflib.get_close_matches(key, [*keys, *options], n=1, cutoff=0.0)
        raise ConfigError(f"{override.input_line}: there is no key {key}; did you mean {near[0]}?")


def _one_line(error: Exception) -> str:
    """Hydra's message and its cause, without the lines that repeat where it came from."""
    seen = [error, *([error.__cause__] if error.__cause__ else [])]
    lines = [str(each).strip().splitlines()[0] for each in seen if str(each).strip()]
    text = ": ".join(dict.fromkeys(lines))
    return text.replace("Error merging override ", "") if text else type(error).__name__
