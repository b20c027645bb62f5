"""The schema of a run, whose sections are in `config.sections`. YAML files hold values only.

`RunConfig` is a run as it is written: counts of tokens as `2M`, `1e9` or `10B` (`config.counts`), and null in
fields whose comment says "null:". `config.resolve` fills them in and returns a `Resolved`, which is what the
frozen `config.yaml` of a run folder holds.
"""

import copy
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from sae_dist.config.counts import parse_count
from sae_dist.config.plain import LARGEST_BYTES, build, read_yaml, write_yaml
from sae_dist.config.resolved import (
    ResolvedCheckpoint,
    ResolvedEval,
    ResolvedLlm,
    ResolvedOptim,
    ResolvedSae,
    ResolvedShuffle,
)
from sae_dist.config.sections import (
    ActivationsConfig,
    CacheConfig,
    CheckpointConfig,
    ClusterConfig,
    EvalConfig,
    GridConfig,
    LlmConfig,
    MetricsConfig,
    OptimConfig,
    SaeConfig,
    ShuffleConfig,
    TokensConfig,
    TopologyConfig,
)
from sae_dist.config.tables import CHOICES, LARGEST_GRID, LARGEST_MATRIX, MAY_BE_OPEN
from sae_dist.config.trust import NOTHING, Granted, check_granted, withheld
from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import read_bounded, reading
from sae_dist.core.text import first_line

C = TypeVar("C")


@dataclass
class RunConfig:
    """A run as it is written. `sae-dist train --cfg job` prints it as composed."""

    name: str | None = None  # the run folder; null: made of the values that matter
    output: str = "outputs"  # the run folder's parent
    seed: int = 0  # of the order of data and of the initial weights
    train_tokens: Any = "2M"  # activations to train on: 500k, 2M, 1e9
    batch: int = 2048  # activations per step, all replicas together
    hook: str | None = None  # module path, `:out` (default) or `:in`; null: the middle layer's output
    target_hook: str | None = None  # null: reconstruct the input itself; else a transcoder to there
    private: bool = False  # the run folder is yours alone (0700, files 0600); false: as your umask says
    resume: str = "never"  # never | auto: continue the newest complete checkpoint
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "float32"  # float32 | float64 | bfloat16 (activations on the wire; weights stay float32)
    matmul: str = "float32"  # float32 | tf32 (products of kinds without selection, and of AuxK, on a GPU)
    kernels: str = "auto"  # auto (triton on a GPU, else torch) | triton | torch | reference
    llm: LlmConfig = field(default_factory=LlmConfig)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    activations: ActivationsConfig = field(default_factory=ActivationsConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    shuffle: ShuffleConfig = field(default_factory=ShuffleConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    sae: SaeConfig = field(default_factory=SaeConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    @property
    def steps(self) -> int:
        """Return the steps of the whole run, once counts are parsed."""
        return self.train_tokens // self.batch

    @property
    def is_grid(self) -> bool:
        """Return whether the run trains several dictionaries on one stream."""
        return any(values is not None for values in vars(self.grid).values())

    @property
    def runs_llm(self) -> bool:
        """Return whether training runs the language model, rather than read or make activations."""
        return self.activations.kind == "llm"

    @property
    def has_llm(self) -> bool:
        """Return whether activations come from a language model, which evaluation can run again."""
        return self.activations.kind in ("llm", "cache")

    @property
    def reads_cache(self) -> bool:
        """Return whether activations are read from a harvest, so that training needs no language model."""
        return self.activations.kind == "cache"

    @property
    def reads_file(self) -> bool:
        """Return whether activations are the rows of an array, without text or language model."""
        return self.activations.kind == "file"

    @property
    def is_synthetic(self) -> bool:
        """Return whether activations are drawn from known features."""
        return self.activations.kind == "synthetic"


@dataclass(kw_only=True)
class Resolved(RunConfig):
    """A run in which every choice is made: what `config.resolve` returns and config.yaml holds.

    The `sae` of a grid stays as it is written: each of its dictionaries has a `Single` of its own.
    """

    name: str
    train_tokens: int
    llm: ResolvedLlm
    shuffle: ResolvedShuffle
    optim: ResolvedOptim
    checkpoint: ResolvedCheckpoint
    eval: ResolvedEval


@dataclass(kw_only=True)
class Single(Resolved):
    """A resolved run of one dictionary, which is alone or a member of a grid."""

    sae: ResolvedSae


@cache
def register() -> None:
    """Tell Hydra the schema, as the config that conf/train.yaml starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def parse_counts(cfg: RunConfig) -> RunConfig:
    """Return a copy of `cfg` with every count as an int.

    Raises:
        ConfigError: not a count.
    """
    cfg = copy.deepcopy(cfg)
    cfg.train_tokens = parse_count(cfg.train_tokens, "train_tokens")
    cfg.eval.rows = parse_count(cfg.eval.rows, "eval.rows")
    for key in ("tokens", "ce_tokens", "every", "ce"):
        if (given := getattr(cfg.eval, key)) is not None:
            setattr(cfg.eval, key, parse_count(given, f"eval.{key}"))
    if cfg.checkpoint.every is not None:
        cfg.checkpoint.every = parse_count(cfg.checkpoint.every, "checkpoint.every")
    if cfg.checkpoint.keep_every is not None:
        cfg.checkpoint.keep_every = parse_count(cfg.checkpoint.keep_every, "checkpoint.keep_every")
    if cfg.sae.dead_after is not None:
        cfg.sae.dead_after = parse_count(cfg.sae.dead_after, "sae.dead_after")
    return cfg


def narrowed(kind: type[C], wide: Any, prefix: str = "") -> C:
    """Return a config whose counts are parsed and whose fields are filled in as a `Resolved` or a `Single`.

    Raises:
        ConfigError: a field is null that such a config has a value for.
    """
    values = {}
    for item in fields(kind):  # type: ignore[arg-type]
        key, value = prefix + item.name, getattr(wide, item.name)
        hint: Any = item.type
        if value is None and hint is not Any and NoneType not in get_args(hint):
            raise ConfigError(f"{key} is null; the config of a run folder has a value there")
        values[item.name] = narrowed(hint, value, f"{key}.") if is_dataclass(value) else value
    return kind(**values)


def load_config(path: Path, granted: Granted = NOTHING) -> Resolved:
    """Read a frozen config.yaml: a `Single`, unless it is a grid's. Nothing in it is resolved.

    Args:
        granted: values that run code, by key, which the command grants; others are left out, see
            `config.trust`.

    Raises:
        ConfigError: there is none, or it does not fit the schema.
    """
    return withheld(recorded_config(path), granted)


def granted_config(path: Path, granted: Granted, keys: Collection[str]) -> Resolved:
    """Read a frozen config.yaml as `load_config`, for a command that would use `keys`.

    Raises:
        ConfigError: see there; or the file has a value of one of `keys` that the command does not grant.
    """
    check_granted(recorded_config(path), granted, path, keys)
    return load_config(path, granted)


def recorded_config(path: Path) -> Resolved:
    """Read a frozen config.yaml as it was written, to compare it or to write it again: nothing may run of it.

    Raises:
        ConfigError: there is none, or it does not fit the schema.
    """
    if not path.is_file():
        raise ConfigError(f"{path.parent} is not a run folder: it has no {path.name}")
    try:
        with reading("", "{reason}"):
            return copy.deepcopy(_parsed(read_bounded(path, LARGEST_BYTES).decode("utf-8")))
    except ConfigError as error:
        raise ConfigError(f"{path} is not the config of a run: {first_line(error)}") from None


@lru_cache(maxsize=64)
def _parsed(text: str) -> Resolved:
    """Read YAML; kept, since a command reads its config often."""
    loaded = build(RunConfig, read_yaml(text))
    for key, allowed in CHOICES.items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(loaded, section) if section else loaded, name)
        if value not in allowed and not (value is None and key in MAY_BE_OPEN):
            raise ValueError(f"{key}={value} is not one of {', '.join(allowed)}")
    if (loaded.activations.num_features or 0) * (loaded.activations.width or 0) > LARGEST_MATRIX:
        raise ValueError("activations.num_features times activations.width is too large")
    if loaded.grid.misfit:
        raise ValueError(loaded.grid.misfit)
    if loaded.grid.size > LARGEST_GRID:
        raise ValueError(f"grid has {loaded.grid.size} dictionaries; at most {LARGEST_GRID}")
    return narrowed(Resolved if loaded.is_grid else Single, parse_counts(loaded))


def save_config(cfg: RunConfig, path: Path) -> None:
    """Write a config as YAML, values only."""
    path.write_text(write_yaml(asdict(cfg)), encoding="utf-8")


@cache
def schema(node: Any = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Return every key of a run, dotted, with its type; a section has its dataclass. For reading only."""
    found: dict[str, Any] = {}
    for name, kind in get_type_hints(node).items():
        found[prefix + name] = kind
        if is_dataclass(kind):
            found |= schema(kind, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found


def flat(cfg: RunConfig) -> dict[str, Any]:
    """Return every value by its full key: `{"sae.k": 32, ...}`."""
    found: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        for item in fields(node):
            value = getattr(node, item.name)
            if is_dataclass(value):
                walk(f"{prefix}{item.name}.", value)
            else:
                found[prefix + item.name] = value

    walk("", cfg)
    return found
