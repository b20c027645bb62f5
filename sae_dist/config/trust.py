"""The keys of a config that run code or choose where something is written, and who may set them.

A file sets none of the keys of EXECUTES: not a manifest, a foreign config, conf/local/default.yaml, nor the
frozen config.yaml of a run folder, which keeps them as a record. The command that is given now grants each of
them, word for word: `sae-dist resume RUN llm.trust_remote_code=true`. docs/trust.md explains it.
"""

import copy
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import quoted

C = TypeVar("C")
COMMAND = re.compile(r"\s*pipe\s*:|.*::\s*pipe\s*:", re.IGNORECASE | re.DOTALL)
"""A path that is a shell command: pipe:, also as a part of a chain of addresses."""


def runs_a_command(value: Any) -> bool:
    """Tell whether a path is a shell command."""
    return isinstance(value, str) and COMMAND.match(value) is not None


@dataclass(frozen=True)
class Executing:
    """A key that can run code.

    Attributes:
        runs: tells whether a value does.
        neutral: the value in its place where it is not granted: the schema's default.
    """

    runs: Callable[[Any], bool]
    neutral: Any = None


BOUND = ["--cpu-bind=cores"]
EXECUTES: Mapping[str, Executing] = MappingProxyType(
    {
        "llm.trust_remote_code": Executing(bool, False),
        "activations.path": Executing(runs_a_command),
        "cluster.setup": Executing(bool, []),
        "cluster.sbatch": Executing(bool, []),
        "cluster.srun": Executing(lambda options: options != BOUND, BOUND),
        "cluster.command": Executing(bool),
        "cluster.producer.sbatch": Executing(bool),
    }
)
REMOTE_CODE = "llm.trust_remote_code"
LLM = (REMOTE_CODE,)
"""The keys that evaluation, reports and exports use."""
TRAINING = (*LLM, "activations.path")
"""The keys that a run uses as it goes on; those of cluster are used where its job is written."""
WRITES = frozenset({"output", "name"})
"""Keys that say where a new folder is made. A command that is given a folder writes into that one alone."""
Granted = Mapping[str, Any]
NOTHING: Granted = MappingProxyType({})


def executing(cfg: Any) -> dict[str, Any]:
    """Return the values of a config that run code, by key."""
    values = {key: _get(cfg, key) for key in EXECUTES}
    return {key: value for key, value in values.items() if EXECUTES[key].runs(value)}


def withheld(cfg: C, granted: Granted) -> C:
    """Return a copy in which every value that runs code is neutral, unless just this value is granted."""
    cfg = copy.deepcopy(cfg)
    for key, value in executing(cfg).items():
        if key not in granted or granted[key] != value:
            section, _, name = key.rpartition(".")
            setattr(_get(cfg, section), name, copy.copy(EXECUTES[key].neutral))
    return cfg


def check_granted(cfg: Any, granted: Granted, where: Path, keys: Collection[str]) -> None:
    """Check that a command grants what a run asks for, before anything is done without it.

    Args:
        cfg: the run's config as its file has it.
        where: that file.
        keys: those that the command would use.

    Raises:
        ConfigError: it does not; the message has the word to add.
    """
    for key, value in executing(cfg).items():
        if key not in keys:
            continue
        if key not in granted:
            raise ConfigError(
                f"{where} asks for {key}, which runs code, and a file cannot grant that; if you trust it, "
                f"add the word to your command: {quoted(word(key, value))}"
            )
        if granted[key] != value:
            raise ConfigError(
                f"{where} has {quoted(word(key, value))} and your command grants "
                f"{quoted(word(key, granted[key]))}; only what is granted word for word runs"
            )


def word(key: str, value: Any) -> str:
    """Return `key=value` as `granted_by` reads it, such as llm.trust_remote_code=true."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def words(granted: Granted) -> list[str]:
    """Return the words for a run that goes on, which a command passes on to those that it starts."""
    return [word(key, granted[key]) for key in TRAINING if key in granted]


def granted_by(arguments: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """Return a command's other arguments, and what its words grant.

    Raises:
        ConfigError: llm.trust_remote_code is neither true nor false.
    """
    rest, found = list[str](), dict[str, Any]()
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in TRAINING or not equals:
            rest.append(argument)
        elif EXECUTES[key].neutral is not False:
            inner = value[1:-1] if value[:1] == value[-1:] and value[:1] in ("'", '"') else value
            found[key] = inner
        elif value.lower() in ("true", "false"):
            found[key] = value.lower() == "true"
        else:
            raise ConfigError(f"{argument} has the wrong type; {key} takes true or false")
    return rest, found


def _get(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = getattr(cfg, part)
    return cfg
