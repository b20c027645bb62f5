"""Fills in what a config leaves open; the result is what `config.yaml` of a run holds."""

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.config.grid import members
from sae_dist.config.kinds import ENCODER_SCALE, KINDS, SELECTED
from sae_dist.config.rules.sharing import DEFAULT_LANES, default_lanes
from sae_dist.config.run import Resolved, RunConfig, Single, flat, narrowed, parse_counts
from sae_dist.config.sections import OF_HOOKS
from sae_dist.config.triton import cuda_is_here, triton_problem
from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from sae_dist.core.types import LlmFacts

DEFAULT_EXPANSION = 16
DEFAULT_CONTEXT = 256
WARMUP_STEPS = 1000
LARGEST_BLOCK = 8
SHORT_RUN = 1_000_000
"""Runs of fewer tokens are evaluated on less, unless more is asked for."""
EVAL_TOKENS, CE_TOKENS = (500_000, 50_000), (64_000, 8_000)
"""Of a run, and of a short one."""
DEAD_AFTER_AT_MOST = 10_000_000
SAME_RUN = ("name", "output", "private", "resume", "metrics", "topology", "cache", "checkpoint", "cluster")
"""Sections and keys that may change when a run is continued."""
LATER = tuple(f"grid.{key}" for key in OF_HOOKS)
SAME_RUN_KEYS = ("llm.shard", "llm.shard_size", "llm.offload", "llm.compile")
"""Keys that may change too, in sections whose other keys may not."""


def resolve(cfg: RunConfig, facts: "LlmFacts | None", width: int) -> Resolved:
    """Make every choice that depends on the model, the data or this machine; `cfg` is left as it is.

    The result is a `Single`, unless it is a grid.

    `optim.lr` stays open: training fills it in by its law and says so.

    Args:
        facts: of the LLM; None if activations come from a file or are synthetic.
        width: D of the activations, of a transcoder's input.

    Raises:
        ConfigError: two fields that say the same thing, or a context that the model does not have.
    """
    cfg = parse_counts(cfg)
    if facts is not None:
        cfg.hook, cfg.target_hook = facts.hook, facts.target_hook
        cfg.llm.packed = facts.packed
        cfg.llm.attn = cfg.llm.attn or facts.attn
        cfg.tokens.context = _context(cfg.tokens.context, facts)
        if cfg.grid.hook is not None:
            cfg.grid.hook = [pair.hook for pair in facts.pairs]
        if cfg.grid.target_hook is not None:
            cfg.grid.target_hook = [pair.target_hook or "" for pair in facts.pairs]
    named_with = fill_open(cfg)
    _resolve_machine(cfg)
    if not cfg.is_grid:
        _resolve_sae(cfg, width)
    if cfg.optim.warmup is None:
        cfg.optim.warmup = min(WARMUP_STEPS / max(cfg.steps, 1), 0.2)
    cfg.name = cfg.name or run_name(cfg, facts, named_with)
    return narrowed(Resolved if cfg.is_grid else Single, cfg)


def fill_open(cfg: RunConfig) -> dict[str, Any]:
    """Fill in lanes, blocks and the extent of the evaluation at the end, where they are open.

    Returns:
        The values by which the run is named, by full key, of those that were open: the same ones whatever the
        topology, so that the command with another topology finds the same folder, and whatever this release
        chooses.
    """
    shuffle, extent, named_with = cfg.shuffle, cfg.eval, dict[str, Any]()
    if shuffle.block_chunks is None:
        named_with["shuffle.block_chunks"] = block_of(cfg, shuffle.lanes or DEFAULT_LANES)
    if shuffle.lanes is None:
        named_with["shuffle.lanes"] = DEFAULT_LANES
        shuffle.lanes = default_lanes(cfg)
    if shuffle.block_chunks is None:
        shuffle.block_chunks = block_of(cfg, shuffle.lanes)
    short = cfg.train_tokens < SHORT_RUN
    for name, full, little in (("tokens", *EVAL_TOKENS), ("ce_tokens", *CE_TOKENS)):
        if getattr(extent, name) is None:
            named_with[f"eval.{name}"] = full
            setattr(extent, name, little if short else full)
    return named_with


def resolved_members(cfg: Resolved, facts: "LlmFacts | None", width: int) -> list[Single]:
    """Return the config of each dictionary of a resolved run, resolved as if it were trained alone.

    Raises:
        ConfigError: see `resolve`.
    """
    found = members(cfg)
    for member in found:
        place = member.hook, member.target_hook
        _resolve_sae(member, width if facts is None else facts.only(*place).width)
    return [narrowed(Single, member) for member in found]


def identity(cfg: RunConfig) -> dict[str, Any]:
    """Return the values of a resolved config that a continued run may not change, by full key."""
    return {
        key: value
        for key, value in flat(cfg).items()
        if key.split(".")[0] not in SAME_RUN and key not in SAME_RUN_KEYS
    }


def run_name(cfg: RunConfig, facts: "LlmFacts | None", named_with: dict[str, Any]) -> str:
    """Return the default name of a run's folder.

    It is `<llm>-<hook>-<kind>-<latents>-k<k>-<hash>`, and of a grid `<llm>-<hook>-<kind>-grid-of-<n>-<hash>`.
    A transcoder's hook is `<hook>-to-<target_hook>`, the first of a grid of such pairs. Without an LLM, the
    stem of the activations' file or `synthetic-<features>in<width>` stands in place of LLM and hook.

    Args:
        named_with: values that take the place of the config's in the hash; see `fill_open`.
    """
    if cfg.is_synthetic:
        source = f"synthetic-{cfg.activations.num_features}in{cfg.activations.width}"
    elif facts is None:
        source = Path(cfg.activations.path or "").stem
    else:
        places = facts.pairs[0].hooks if facts.more_targets else facts.hooks
        hooks = "-to-".join(hook.removesuffix(":out").replace(":", "_") for hook in places)
        source = f"{Path(facts.name).name}-{hooks}"
    values = identity(cfg) | named_with
    # Keys that older runs had not: without a value they name the same run.
    values = {key: each for key, each in values.items() if each is not None or key not in LATER}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]
    if cfg.is_grid:
        what = f"grid-of-{len(members(cfg))}"
    else:
        what = f"{cfg.sae.num_latents}" + (f"-k{cfg.sae.k}" if cfg.sae.kind in SELECTED else "")
    readable = f"{source}-{cfg.sae.kind}-{what}"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", f"{readable[:200]}-{digest}").lstrip(".")


def _context(given: int | None, facts: "LlmFacts") -> int:
    if given is None:
        return min(facts.context or DEFAULT_CONTEXT, DEFAULT_CONTEXT)
    check_context(given, facts.name, facts.context)
    return given


def check_context(given: int | None, llm: str, longest: int | None) -> None:
    """Check that `tokens.context` is no more than the LLM accepts; None: not given, or not limited.

    Raises:
        ConfigError: it is more.
    """
    if given is not None and longest is not None and given > longest:
        raise ConfigError(
            f"tokens.context={given} is more than llm.name={llm} accepts; use at most {longest}"
        )


def block_of(cfg: RunConfig, lanes: int) -> int:
    """Return the chunks of a block that is left open, with so many lanes.

    At most a fifth of the run: training begins once every lane has filled its first block.
    """
    fifth = cfg.train_tokens // (5 * lanes * cfg.shuffle.chunk_rows)
    return min(max(fifth, 1), LARGEST_BLOCK)


def _resolve_machine(cfg: RunConfig) -> None:
    if cfg.device == "auto":
        cfg.device = "cuda" if cuda_is_here() else "cpu"
    if cfg.kernels == "auto":
        cfg.kernels = "triton" if cfg.device == "cuda" and triton_problem() is None else "torch"
    if cfg.llm.dtype is None:
        fast = "float32" if cfg.device == "cpu" else "bfloat16"
        cfg.llm.dtype = "float64" if cfg.precision == "float64" else fast


def _resolve_sae(cfg: RunConfig, width: int) -> None:
    sae = cfg.sae
    if sae.num_latents is not None and sae.expansion is not None:
        raise ConfigError(
            f"sae.num_latents={sae.num_latents} and sae.expansion={sae.expansion:g} are both given; give one"
        )
    if sae.num_latents is None:
        sae.num_latents = round((sae.expansion or DEFAULT_EXPANSION) * width)
        # Both ways of writing one width make one run.
        sae.expansion = None
    if sae.aux_k is None:
        sae.aux_k = min(width // 2, sae.num_latents // 2)
    if sae.dead_after is None:
        sae.dead_after = min(DEAD_AFTER_AT_MOST, max(cfg.train_tokens // 10, 1))
    if sae.encoder_scale is None:
        sae.encoder_scale = encoder_scale(sae.kind, sae.num_latents, width)


def encoder_scale(kind: str, num_latents: int, width: int) -> float:
    """Return the length of the encoder's rows before training.

    Where half of all latents fire, random unit rows add up to num_latents / (2 width) times the activation.
    Such kinds start with the inverse of that, so that the reconstruction starts near the activation.
    """
    if not KINDS[kind].dense_start:
        return ENCODER_SCALE
    return min(ENCODER_SCALE, 2 * width / num_latents)
