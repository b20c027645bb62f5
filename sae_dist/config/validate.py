"""Every rule of a config. A broken one is one line: the field, its value, and what to write instead."""

import difflib
import itertools
import math
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from sae_dist.config.grid import STAR, grid_problems, members
from sae_dist.config.kinds import KINDS, READ_BY, SELECTED
from sae_dist.config.plain import LARGEST, LARGEST_FLOAT
from sae_dist.config.rules.checkpoint import checkpoint_problems
from sae_dist.config.rules.cluster import cluster_problems, submit_problems
from sae_dist.config.rules.evaluation import evaluation_problems
from sae_dist.config.rules.sharding import sharding_problems, world_problems
from sae_dist.config.rules.sharing import latents_are_open, sharing_problems
from sae_dist.config.rules.synthetic import GIVEN_BY_GROUP, GROUPED, synthetic_problems
from sae_dist.config.run import RunConfig, flat
from sae_dist.config.tables import (
    AT_MOST_ONE,
    BELOW_ONE,
    CHOICES,
    GROUP_OF,
    LARGEST_SEED,
    MAY_BE_OPEN,
    MEANT,
    NOT_NEGATIVE,
    POSITIVE,
    UNREAD,
)
from sae_dist.config.triton import cuda_is_here, triton_problem
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import check_plain


def validate(
    cfg: RunConfig,
    world_size: int | None = None,
    *,
    submitted: bool = False,
    expansion: float | None = None,
    again: bool = False,
    begun: bool = False,
) -> None:
    """Check a config whose counts are parsed, before or after `resolve`; fields that are null are skipped.

    Args:
        world_size: ranks that a launcher started; None if this command starts its own.
        submitted: the run goes to a cluster, whose devices this machine need not have.
        expansion: `sae.expansion` as it was written; `resolve` makes a number of latents of it.
        again: it is checked again after `resolve`: what ranks share out then, if latents are open now, that
            one line may name all that does not fit.
        begun: the run continues with the values that it was begun with.

    Raises:
        ConfigError: the first rule that is broken.
    """
    for key, value in flat(cfg).items():
        for text in _texts(value):
            check_plain(text, key)
    there = submit_problems(cfg) if submitted else _device(cfg)
    sharing = iter(()) if again and latents_are_open(cfg) else sharing_problems(cfg, expansion, begun=begun)
    problems = _problems(cfg, world_size, sharing)
    for problem in itertools.chain(problems, cluster_problems(cfg), there):
        raise ConfigError(problem)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _problems(cfg: RunConfig, world_size: int | None, sharing: Iterator[str]) -> Iterator[str]:
    if cfg.is_grid:
        yield from grid_problems(cfg)
        yield from sharing
        yield from world_problems(cfg, world_size)
        for member in members(cfg):
            for problem in _problems(member, None, iter(())):
                yield f"{problem} (in the grid: {member.name})"
        return
    yield from _choices(cfg)
    yield from _ranges(cfg)
    yield from _unread(cfg)
    yield from _needed(cfg)
    if cfg.is_synthetic:
        yield from synthetic_problems(cfg.activations)
    yield from _sae(cfg)
    yield from _target(cfg)
    yield from sharing
    yield from checkpoint_problems(cfg)
    yield from evaluation_problems(cfg)
    yield from sharding_problems(cfg)
    yield from world_problems(cfg, world_size)


def get(cfg: RunConfig, key: str) -> Any:
    """Return the value of a dotted key, such as `sae.k`."""
    value: Any = cfg
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _choices(cfg: RunConfig) -> Iterator[str]:
    for key, allowed in CHOICES.items():
        value = get(cfg, key)
        if value is None and key in MAY_BE_OPEN or value in allowed:
            continue
        meant = [each for each in MEANT.get(str(value).lower(), ()) if each in allowed]
        near = meant or difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"; nearest: {key}={near[0]}" if near else ""
        yield f"{key}={value} is not one of {', '.join(allowed)}{hint}"


def _ranges(cfg: RunConfig) -> Iterator[str]:
    for key in (*POSITIVE, *NOT_NEGATIVE):
        value = get(cfg, key)
        if value is None:
            continue
        if not math.isfinite(value) or value < 0 or (value == 0 and key in POSITIVE):
            yield f"{key}={value} must be {'greater than 0' if key in POSITIVE else '0 or more'}"
        elif value > LARGEST_FLOAT:
            yield f"{key}={value} is too large; at most {LARGEST_FLOAT:g}"
    for key, most in LARGEST.items():
        if (get(cfg, key) or 0) > most:
            yield f"{key}={get(cfg, key)} is too large; at most {most}"
    for key in BELOW_ONE:
        value = get(cfg, key)
        if value is not None and not 0 <= value < 1:
            example = 0.9 if key.endswith("1") else 0.999
            yield f"{key}={value} must be 0 or more and below 1, for example {example}"
    for key in AT_MOST_ONE:
        value = get(cfg, key)
        if value is not None and not 0 <= value <= 1:
            yield f"{key}={value} is a fraction of the run; it must lie between 0 and 1"
    multiple = cfg.tokens.max_norm_multiple
    if multiple is not None and not multiple > 1:
        yield (
            f"tokens.max_norm_multiple={multiple:g} would leave out ordinary activations; "
            "use more than 1, such as 10, or null"
        )
    for key in ("seed", "sae.seed"):
        if (get(cfg, key) or 0) > LARGEST_SEED:
            yield f"{key}={get(cfg, key)} must be at most {LARGEST_SEED}"
    warmup = cfg.optim.warmup or 0.0
    if warmup + cfg.optim.decay > 1:
        yield (
            f"optim.warmup={warmup:g} and optim.decay={cfg.optim.decay:g} are fractions of the run and must "
            "add up to at most 1"
        )
    profile = cfg.metrics.profile
    if profile is not None and (len(profile) != 2 or min(profile) < 1):
        yield (
            f"metrics.profile={profile} must be the first step and how many, both 1 or more, for example "
            "metrics.profile=[20,3]"
        )
    elif profile is not None and profile[0] > cfg.steps:
        yield f"metrics.profile={profile} begins after the run's last step, {cfg.steps}"
    if cfg.batch == 1:
        yield (
            "batch=1: the loss is divided by the variance of a batch, which one row has not; use at least 2, "
            "such as batch=2048"
        )
    if cfg.train_tokens < cfg.batch:
        yield f"train_tokens={cfg.train_tokens} is less than one step of batch={cfg.batch}; train longer"


def _unread(cfg: RunConfig) -> Iterator[str]:
    for (kind_key, kind), keys in UNREAD.items():
        if get(cfg, kind_key) != kind:
            continue
        group = kind_key.split(".")[0]
        for key in keys:
            value = get(cfg, key)
            if value is not None:
                where = f"; use {GROUP_OF[key]} or" if key in GROUP_OF and group == key.split(".")[0] else ";"
                yield f"{key}={value} is not read with {kind_key}={kind}{where} leave {key} out"
    if cfg.metrics.upload and cfg.metrics.wandb == "off":
        yield (
            "metrics.upload=true uploads to W&B, and metrics.wandb=off; use metrics.wandb=auto, or leave "
            "metrics.upload out"
        )
    if not cfg.runs_llm and cfg.topology.producers:
        reads = {"file": "reads the file", "cache": "reads its own lanes of the cache"}
        how = reads.get(cfg.activations.kind, "makes its own activations")
        yield (
            f"topology.producers={cfg.topology.producers} needs a language model; with activations.kind="
            f"{cfg.activations.kind} every rank {how}: use topology.producers=0"
        )


def _needed(cfg: RunConfig) -> Iterator[str]:
    if cfg.name is not None and (cfg.name in ("", ".", "..") or "/" in cfg.name):
        yield f"name={cfg.name} must be the name of one folder; its parent is output={cfg.output}"
    if not cfg.llm.name:
        yield "llm.name is empty; give a model's name or folder, such as llm.name=gpt2"
    needs = [
        ("activations.kind", "file", "activations.path", "acts.npy"),
        ("activations.kind", "cache", "activations.path", "outputs/my_cache"),
        *(("activations.kind", "synthetic", key, example) for key, example in GIVEN_BY_GROUP.items()),
        *(("activations.groups", each, "activations.group_size", "4") for each in GROUPED),
        ("activations.groups", "together", "activations.group_strength", "0.5"),
        ("activations.groups", "hierarchy", "activations.group_strength", "0.5"),
        ("tokens.kind", "webdataset", "tokens.path", "'shards/{000..031}.tar'"),
        ("tokens.kind", "hf", "tokens.dataset", "json, with tokens.data_files=docs.jsonl"),
    ]
    for kind_key, kind, key, example in needs:
        if get(cfg, kind_key) == kind and get(cfg, key) in (None, ""):
            yield f"{key} must be given with {kind_key}={kind}, for example {key}={example}"


def _sae(cfg: RunConfig) -> Iterator[str]:
    sae = cfg.sae
    yield from _kind(cfg)
    if sae.num_latents is None:
        return
    if sae.kind in SELECTED and sae.k > sae.num_latents:
        yield f"sae.k={sae.k} is more than sae.num_latents={sae.num_latents}; use at most {sae.num_latents}"
    if sae.aux_k is not None and sae.aux_k > sae.num_latents:
        yield f"sae.aux_k={sae.aux_k} is more than sae.num_latents={sae.num_latents}; 0 switches AuxK off"


def _kind(cfg: RunConfig) -> Iterator[str]:
    sae, optim = cfg.sae, cfg.optim
    for name, kinds in READ_BY.items():
        value = getattr(sae, name)
        if value is not None and sae.kind not in kinds:
            fix = f"use sae={kinds[0]} or leave it out"
            yield f"sae.{name}={value} is not read with sae.kind={sae.kind}; {fix}"
        if value is None and sae.kind in KINDS and name in KINDS[sae.kind].reads:
            yield f"sae.{name} must be given with sae.kind={sae.kind}; sae={sae.kind} sets it"
    if sae.target_l0 is not None and sae.penalty == "tanh":
        fix = "use that, or sae.target_l0=null"
        yield f"sae.target_l0={sae.target_l0:g} is read with sae.penalty=l0 only; {fix}"
    if sae.prefixes is not None:
        rising = all(a < b for a, b in zip([0.0, *sae.prefixes], sae.prefixes, strict=False))
        if not rising or sae.prefixes[-1:] != [1.0]:
            yield (
                f"sae.prefixes={sae.prefixes} must be rising fractions of the latents, the last one 1, "
                "for example [0.0625,0.25,1]"
            )
    if optim.kind == "row_adam" and sae.kind not in SELECTED:
        yield (
            "optim.kind=row_adam visits the rows that selected codes touch; "
            f"sae.kind={sae.kind} touches all: use optim=adam"
        )
    if optim.kind == "offload" and cfg.precision == "float64":
        yield "optim.kind=offload has no float64; use precision=float32 or optim=adam"


def _target(cfg: RunConfig) -> Iterator[str]:
    for key in ("hook", "target_hook"):
        hook = get(cfg, key)
        if hook is not None and STAR in hook:
            yield f"{key}={hook} names every layer; for a dictionary of each write 'grid.{key}=[{hook}]'"
    if cfg.target_hook is not None and cfg.target_hook == cfg.hook:
        yield f"target_hook={cfg.target_hook} is hook itself; leave target_hook out to train an autoencoder"
    if cfg.sae.skip and cfg.target_hook is None:
        yield "sae.skip=true leads from a transcoder's input to its output; give target_hook, or leave it out"


def _device(cfg: RunConfig) -> Iterator[str]:
    uses = {"optim.kind=offload": cfg.optim.kind == "offload", "llm.shard=zero3": cfg.llm.shard == "zero3"}
    for key, other in (("optim.kind=offload", "optim=adam"), ("llm.shard=zero3", "llm.shard=tp")):
        if uses[key] and find_spec("deepspeed") is None:
            yield (
                f"{key} needs the package deepspeed, which is not installed; use {other}, or "
                "pip install 'sae-dist[gpu]'"
            )
    if cfg.device == "cuda" and not cuda_is_here():
        yield "device=cuda: torch finds no CUDA device here; use device=cpu, or install torch with CUDA"
    if cfg.matmul == "tf32" and (cfg.device == "cpu" or cfg.precision == "float64"):
        other = "device=cpu" if cfg.device == "cpu" else "precision=float64"
        yield f"matmul=tf32 is for float32 on a GPU, and {other} has no TF32; use matmul=float32"
    if cfg.kernels == "triton":
        problem = triton_problem(cfg.device)
        if problem is not None:
            yield problem
