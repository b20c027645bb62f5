"""Overrides of the command line: reads `key=value`, and explains a wrong key or option."""

import dataclasses
import difflib
import functools
import itertools
import typing
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from sae_dist.config.grid import VARIES
from sae_dist.config.run import schema
from sae_dist.core.errors import ConfigError
from sae_dist.launch.options import groups

OPTIONAL_GROUPS = ("experiment", "debug", "local")
PEER_NAMES = {
    "d_sae": "sae.num_latents",
    "dict_size": "sae.num_latents",
    "n_latents": "sae.num_latents",
    "num_features": "sae.num_latents",
    "expansion_factor": "sae.expansion",
    "architecture": "sae.kind",
    "auxk_alpha": "sae.aux_coefficient",
    "dead_feature_window": "sae.dead_after",
    "dead_feature_threshold": "sae.dead_after",
    "hook_name": "hook",
    "hook_point": "hook",
    "hookpoint": "hook",
    "hookpoints": "hook",
    "layer": "hook",
    "hook_name_out": "target_hook",
    "transcode": "target_hook",
    "skip_connection": "sae.skip",
    "model": "llm.name",
    "model_name": "llm.name",
    "training_tokens": "train_tokens",
    "total_training_tokens": "train_tokens",
    "num_tokens": "train_tokens",
    "train_batch_size_tokens": "batch",
    "batch_size": "batch",
    "context_size": "tokens.context",
    "ctx_len": "tokens.context",
    "dataset_path": "tokens.dataset",
    "learning_rate": "optim.lr",
    "lr_warm_up_steps": "optim.warmup",
    "adam_beta1": "optim.beta1",
    "adam_beta2": "optim.beta2",
    "dtype": "precision",
    "wandb_project": "metrics.project",
    "run_name": "name",
    "save_dir": "output",
    "output_dir": "output",
    "checkpoint_path": "output",
}
TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
}


def parse(text: str) -> Override:
    """Read `key=value`; text that Hydra's grammar rejects, such as a path with braces, is quoted first.

    Raises:
        ConfigError: no key=value, or no such key or option.
    """
    key, equals, value = text.partition("=")
    if not equals and text.startswith("~"):
        raise ConfigError(f"{text} removes a key; every key exists: write {text[1:]}=null")
    if not equals:
        raise ConfigError(f"{text} is not an override; write key=value, such as sae.k=16")
    if key != key.strip() or value != value.lstrip():
        raise ConfigError(f"{text} has spaces beside its =; write {key.strip()}={value.strip()}")
    try:
        override = _by_grammar(text)
    except HydraException:
        if list in kinds_of(key) or str not in kinds_of(key):
            _check_key(key.lstrip("+~"), value)
            if list in kinds_of(key) and str in kinds_of(key):
                fix = f"""quote its items: {key}='["..."]'"""
            elif list in kinds_of(key):
                fix = f"write the list without spaces, all of it in quotes: '{key}=[first,second]'"
            else:
                fix = f"""quote the value: {key}='"..."'"""
            raise ConfigError(f"{key}={value} cannot be read; {fix}") from None
        quoted = value.replace("'", "\\'")
        override = _by_grammar(f"{key}='{quoted}'")
    name = override.key_or_group
    _check_key(name, value)
    if override.type not in (OverrideType.CHANGE, OverrideType.FORCE_ADD):
        raise ConfigError(f"{text} adds or removes a key; every key exists: write {name}={value or 'null'}")
    if not is_value(override) and not override.is_sweep_override():
        _check_option(name, override.value())
    return override


def written(value: object) -> str:
    """Return a value as Hydra reads it; text is quoted."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")


@functools.lru_cache(maxsize=1024)
def _by_grammar(text: str) -> Override:
    """Read one override; kept, since a command reads its words several times, at milliseconds each."""
    return OverridesParser.create().parse_override(text)


def is_value(override: Override) -> bool:
    """Return whether an override gives a key its value, and does not choose an option of a group."""
    return override.package is None and _takes_value(override.key_or_group)


def _takes_value(key: str) -> bool:
    return key in schema() and not dataclasses.is_dataclass(schema()[key])


def kinds_of(key: str) -> list[Any]:
    """Return the types of a key's value, a list's before those of its items; [None]: there is no such key."""
    kind = schema().get(key)
    parts = [kind, *typing.get_args(kind)]
    parts += [item for part in parts[1:] for item in typing.get_args(part)]
    return [typing.get_origin(part) or part for part in parts]


def type_in_words(key: str) -> str:
    kinds = kinds_of(key)
    if list not in kinds:
        return " or ".join(TYPE_WORDS[kind] for kind in kinds if kind in TYPE_WORDS) or "one value"
    items = [TYPE_WORDS[kind] for kind in kinds[kinds.index(list) + 1 :] if kind in TYPE_WORDS]
    return f"a list, each item {items[0]}: '{key}=[first,second]'"


def expand(overrides: list[str]) -> list[list[str]]:
    """Return every combination of the values that overrides list, the last varying fastest.

    Raises:
        ConfigError: an argument is not an override, or the values of a sweep cannot be listed.
    """
    choices = []
    for override in map(parse, overrides):
        key = override.get_key_element()
        if override.is_sweep_override():
            try:
                choices.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            except HydraException:
                raise ConfigError(
                    f"{override.input_line} does not say which values; list the values: {key}=first,second"
                ) from None
        else:
            choices.append([override.input_line or ""])
    return [list(each) for each in itertools.product(*choices)]


def sweep_keys(overrides: list[str]) -> list[str]:
    """Return the keys that a multirun varies."""
    return [override.key_or_group for override in map(parse, overrides) if override.is_sweep_override()]


def for_several(override: Override) -> str:
    """Return what to write instead of `grid.k=16,32` or `sae.k=16,32`."""
    key = override.key_or_group
    _, _, value = (override.input_line or "").partition("=")
    if list in kinds_of(key):
        return f"write it as a list: '{key}=[{value}]'"
    grid = next((f"grid.{name}" for name, sets in VARIES.items() if sets == key), None)
    stream = f"write '{grid}=[{value}]' to train all on one stream, or " if grid else ""
    return f"{stream}add -m to start a run for each"


def _check_key(key: str, value: str) -> None:
    if _takes_value(key) or key in groups():
        return
    keys = schema()
    if key in keys and dataclasses.is_dataclass(keys[key]):
        inside = [name for name in keys if name.startswith(f"{key}.")]
        raise ConfigError(f"{key}={value} gives a value to a section; its keys: {', '.join(inside)}")
    last = key.split(".")[-1]
    leaves = [name for name in keys if not dataclasses.is_dataclass(keys[name])]
    if last in PEER_NAMES:
        raise ConfigError(f"{key} is not a key here; the same is called {PEER_NAMES[last]}")
    meant = [f"{name}={value}" for name in leaves if name.split(".")[-1] == last]
    if meant:
        raise ConfigError(f"{key} is not a key; did you mean {' or '.join(meant)}?")
    near = difflib.get_close_matches(key, dict.fromkeys([*leaves, *groups()]), n=3, cutoff=0.5)
    ends = {name.split(".")[-1]: name for name in keys}
    near = near or [ends[name] for name in difflib.get_close_matches(last, ends, n=3, cutoff=0.5)]
    hint = f"nearest: {', '.join(near)}" if near else "sae-dist train --help lists the keys"
    raise ConfigError(f"{key} is not a key; {hint}")


def _check_option(group: str, value: Any) -> None:
    options = groups()[group]
    if value in options or (value is None and group in OPTIONAL_GROUPS):
        return
    named = {
        "llm": f"; another model: llm.name={value}",
        "tokens": f"; your own text: tokens.path={value}",
        "cluster": f"; your own: conf/cluster/{value}.yaml, below the folder where you give the command",
    }
    close = difflib.get_close_matches(str(value), options, n=1)
    near = f"; nearest: {group}={close[0]}" if close else ""
    raise ConfigError(
        f"{group}={value} is not an option; options: {', '.join(options)}{near}{named.get(group, '')}"
    )
