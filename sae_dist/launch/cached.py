"""A run that trains from an activation cache, whose manifest takes the place of the LLM and the text."""

from omegaconf import OmegaConf

from sae_dist.config.rules.cache import LLM_KEYS, check_length, fill
from sae_dist.config.run import RunConfig, flat
from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.core.types import LlmFacts
from sae_dist.launch.compose import compose_config
from sae_dist.launch.options import data_folder
from sae_dist.launch.overrides import parse
from sae_dist.transport.cache_manifest import Manifest, check_files, read_manifest


def from_cache(cfg: RunConfig, overrides: list[str]) -> RunConfig:
    """Return the config with the values that the manifest of `activations.path` sets.

    Raises:
        ConfigError: there is no manifest, or the command sets another value than the manifest.
    """
    manifest, given = read_manifest(cfg.activations.path or ""), given_keys(cfg, overrides)
    same_hooks = _other_names(cfg, manifest, given)
    return fill(cfg, manifest.settings, given=given, other_names=same_hooks)


def check_cached(cfg: RunConfig) -> LlmFacts:
    """Check a run's cache and return facts of its LLM, which only evaluation loads.

    Raises:
        ConfigError: the cache is too short for the run, or a shard is missing.
    """
    path = cfg.activations.path or ""
    manifest = read_manifest(path)
    check_length(cfg, manifest.chunks_per_lane)
    check_files(path, manifest)
    return manifest.facts


def given_keys(cfg: RunConfig, overrides: list[str]) -> set[str]:
    """Return the keys that the command sets: directly, by a group's file, or by an experiment.

    An experiment's keys are those whose values differ from the default config.
    """
    given: set[str] = set()
    for override in map(parse, overrides):
        name = override.key_or_group
        given.add(name)
        if name in ("llm", "tokens"):
            file = data_folder("conf") / name / f"{override.value()!s}.yaml"
            given |= {f"{name}.{key}" for key in map(str, OmegaConf.load(file))}
    usual = flat(compose_config([]))
    return given | {key for key, value in flat(cfg).items() if value != usual[key]}


def _other_names(cfg: RunConfig, manifest: Manifest, given: set[str]) -> dict[str, str]:
    """Return the hooks that the command names in other words than the manifest; its LLM translates them."""
    asked = {key: getattr(cfg, key) for key in ("hook", "target_hook")}
    there = {key: manifest.settings[key] for key in asked}
    if not given & {*asked} or asked == there:
        return {}
    from sae_dist.llm.facts import llm_facts

    settings = {
        key.removeprefix("llm."): value for key, value in manifest.settings.items() if key in LLM_KEYS
    }
    llm = LlmConfig(**settings, trust_remote_code=cfg.llm.trust_remote_code)
    try:
        facts, _ = llm_facts(llm, *(asked[key] or there[key] for key in asked))
    except ConfigError:
        # No such hook, or no such LLM here: what was asked for can only be compared letter by letter.
        return {}
    found = {"hook": facts.hook, "target_hook": facts.target_hook}
    return {key: asked[key] for key in asked if asked[key] is not None and found[key] == there[key]}
