"""Errors in the file of a group's option, such as conf/cluster/mysite.yaml, each in one line with a fix."""

import difflib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sae_dist.config.run import RunConfig, schema
from sae_dist.launch.options import conf_folders, groups
from sae_dist.launch.overrides import type_in_words

IN_A_FILE = re.compile(r"In '([^']+)': \w+ raised while composing config")
NOT_FOUND = re.compile(r"Could not find '(\w+)/([^']+)'")
OF_HYDRA = ("defaults", "hydra")


def in_words(error: BaseException) -> str | None:
    """Return an error of Hydra, OmegaConf or YAML as the line that names the file; None: it is in no file."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{_shown(Path(mark.name))} is not YAML: {error.problem} in line {mark.line + 1}"
    if absent := NOT_FOUND.search(str(error)):
        group, option = absent.groups()
        known = ", ".join(groups().get(group, []))
        return f"a file of conf/ asks for {group}={option}, which is not an option; options: {known}"
    named = IN_A_FILE.match(str(error))
    if named is None:
        return None
    there = (folder / f"{named[1]}.yaml" for folder in conf_folders())
    file = next((each for each in there if each.is_file()), None)
    return next(_problems(file), None) if file is not None else None


def _problems(file: Path) -> Iterator[str]:
    """Yield what is wrong with the keys and values of a file."""
    text = file.read_text(encoding="utf-8")
    content, name = yaml.safe_load(text), _shown(file)
    if not isinstance(content, dict):
        yield f"{name} holds no keys; write a line for each, such as key: value"
        return
    section, keys = "" if "@package _global_" in text else f"{file.parent.name}.", schema()
    if section and section[:-1] not in keys:
        yield f"{name} sets keys of several sections; make its first line: # @package _global_"
        return
    for key, value in _leaves(content, section):
        if key not in keys:
            inside, _, last = key.rpartition(".")
            siblings = [each for each in keys if each.rpartition(".")[0] == inside]
            near = difflib.get_close_matches(last, [each.rpartition(".")[2] for each in siblings], n=1)
            hint = f"nearest: {near[0]}" if near else f"keys: {', '.join(siblings)}"
            yield f"{name}: {key.removeprefix(section)} is not a key; {hint}"
            continue
        try:
            OmegaConf.update(OmegaConf.structured(RunConfig), key, value)
        except OmegaConfBaseException:
            yield (
                f"{name}: {key.removeprefix(section)}: {value} has the wrong type; {key} takes "
                f"{type_in_words(key)}"
            )


def _leaves(content: dict[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield every full key with its value; of a key that is no section, the value as it is."""
    for key, value in content.items():
        if not prefix and key in OF_HYDRA or key == "defaults":
            continue
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _shown(file: Path) -> str:
    """Return a path as a person would write it here."""
    inside = os.path.relpath(file)
    return str(file) if inside.startswith("..") else inside
