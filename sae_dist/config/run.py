"""The schema of a run: `RunConfig`, whose sections are in `config.sections`. YAML files hold values only.

Counts of tokens are written `2M`, `1e9` or `10B` (`config.counts`). A field whose comment says
"null:" is filled in by `config.resolve`; the frozen `config.yaml` of a run holds the filled-in value.
"""

import copy
import io
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

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
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import first_line


@dataclass
class RunConfig:
    """One run. `sae-dist train --cfg job` prints it as composed."""

    name: str | None = None  # the run folder; null: made of the values that matter
    output: str = "outputs"  # the run folder's parent
    seed: int = 0  # of the order of data and of the initial weights
    train_tokens: Any = "2M"  # activations to train on: 500k, 2M, 1e9
    batch: int = 2048  # activations per step, all replicas together
    hook: str | None = None  # module path, `:out` (default) or `:in`; null: the middle layer's output
    target_hook: str | None = None  # null: reconstruct the input itself; else a transcoder to there
    resume: str = "never"  # never | auto: continue the newest complete checkpoint
    device: str = "auto"  # auto | cpu | cuda
    precision: str = "float32"  # float32 | float64 | bfloat16 (activations on the wire; weights stay float32)
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


@cache
def register() -> None:
    """Tell Hydra the schema, as the config that conf/train.yaml starts from."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def load_config(path: Path) -> RunConfig:
    """Read a frozen config.yaml.

    Raises:
        ConfigError: there is none, or it does not fit the schema.
    """
    if not path.is_file():
        raise ConfigError(f"{path.parent} is not a run folder: it has no {path.name}")
    try:
        return copy.deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not the config of a run: {first_line(error)}") from None


@lru_cache(maxsize=64)
def _parsed(text: str) -> RunConfig:
    """Kept, since it takes a tenth of a second, and a command reads its run's config seven times."""
    merged = OmegaConf.merge(OmegaConf.structured(RunConfig), OmegaConf.load(io.StringIO(text)))
    loaded = OmegaConf.to_object(merged)
    assert isinstance(loaded, RunConfig)
    return loaded


def save_config(cfg: RunConfig, path: Path) -> None:
    """Write a config as YAML, values only."""
    OmegaConf.save(OmegaConf.structured(cfg), path)


def flat(cfg: RunConfig) -> dict[str, Any]:
    """`{"sae.k": 32, ...}`: every value by its full key."""
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
