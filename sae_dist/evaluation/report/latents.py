"""The latents of a report, from the export, the LLM and the held-out data of a run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.atlas.describe.effects import why_no_fit, why_none
from sae_dist.config.counts import parse_count
from sae_dist.config.run import Resolved
from sae_dist.core.errors import ConfigError
from sae_dist.core.progress import reported
from sae_dist.core.run_folder import EXPORT
from sae_dist.evaluation.report.collect import Group, choose, collect, firing_rates
from sae_dist.evaluation.report.firing import Fired
from sae_dist.evaluation.report.logits import Effect, effects
from sae_dist.evaluation.report.read import Read, first, read_rows_of, read_text
from sae_dist.evaluation.subject import file_rows
from sae_dist.evaluation.synthetic import held_out
from sae_dist.export.exported import Encode, ExportedSae
from sae_dist.export.saelens import FIRING, WEIGHTS, load_exported, load_firing_rates
from sae_dist.kernels.choose import choose_kernels
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.whole import load_to_splice, up_to_hook, why_not_held
from sae_dist.tokens.decoder import Decoder

TOKENS = 100_000


@dataclass(frozen=True)
class Latents:
    """The content of a report's section on latents.

    Attributes:
        rate_F: share of held-out tokens on which each latent fires; None: nothing could be read.
        rows: held-out activations on which `firings` were collected.
        no_text, no_effects: why there are no contexts, and no effects on logits.
        of: what the rows are; drawn_by: what contexts were drawn by, in words.
    """

    sae: ExportedSae
    rate_F: Tensor | None = None
    rows: int = 0
    groups: tuple[Group, ...] = ()
    firings: Mapping[int, Fired] | None = None
    effects: dict[int, Effect] | None = None
    decoder: Decoder | None = None
    no_text: str | None = None
    no_effects: str | None = None
    of: str = "held-out activations"
    drawn_by: str = "quantile"


@dataclass(frozen=True)
class Source:
    """A source of held-out rows, to be read from the beginning as often as needed, and their LLM."""

    reads: Callable[[], Iterator[Read]]
    llm: FrozenLlm | None = None
    no_text: str | None = None
    no_effects: str | None = None


def read_latents(cfg: Resolved, folder: Path) -> Latents:
    """Read `folder`/export: how often latents fire, and thirty of them closely.

    Reads as many held-out tokens as the evaluation, 100k if it was off. Firing rates are those of the
    evaluation, if it has seen this export; else they take a pass of their own.

    If the LLM or the text is not on this machine, only the reason is returned.

    Raises:
        ConfigError: there is no export.
        DataError: there are no held-out activations.
    """
    device = torch.device("cuda" if cfg.device != "cpu" and torch.cuda.is_available() else "cpu")
    kernels = "torch" if cfg.kernels == "triton" and device.type == "cpu" else cfg.kernels
    encode = choose_kernels(kernels).encode_topk
    sae = load_exported(folder / EXPORT).to(device)
    tokens = parse_count(cfg.eval.tokens, "eval.tokens") or TOKENS
    try:
        source = open_source(cfg, device)
    except ConfigError as error:
        reason = f"the activations cannot be read here: {error}"
        return Latents(sae, no_text=reason, no_effects=reason)
    with torch.no_grad():
        return _look(sae, encode, source, tokens, known_rates(folder / EXPORT, sae))


def _look(sae: ExportedSae, encode: Encode, source: Source, tokens: int, rate_F: Tensor | None) -> Latents:
    if rate_F is None:
        rate_F, _ = firing_rates(sae, encode, counted(source, tokens))
    groups = choose(rate_F, tokens)
    chosen = [latent for group in groups for latent in group.latents]
    firings, rows = collect(sae, encode, counted(source, tokens), chosen)
    decoder = Decoder(source.llm.facts) if source.llm else None
    found: dict[int, Effect] | None = None
    no_effects = source.no_effects
    if source.llm is not None and decoder is not None and no_effects is None:
        W_U_VH = source.llm.unembedding()
        no_effects = why_no_fit(sae.W_dec_FE.shape[1], W_U_VH.shape[1])
        if no_effects is None:
            each = effects(W_U_VH, sae.W_dec_FE[chosen], decoder)
            found = dict(zip(chosen, each, strict=True))
    return Latents(
        sae,
        rate_F=rate_F,
        rows=rows,
        groups=tuple(groups),
        firings=firings,
        effects=found,
        decoder=decoder,
        no_text=source.no_text,
        no_effects=no_effects,
    )


def counted(source: Source, tokens: int) -> Iterator[Read]:
    """Read the first so many held-out rows, and say how far that is."""
    reads = first(source.reads(), tokens)
    return reported(reads, lambda read: len(read.x_RD), tokens, "held-out activations read")


def known_rates(export: Path, sae: ExportedSae) -> Tensor | None:
    """Return the evaluation's firing rates [F]; None: not measured, or measured on an older export."""
    if not (export / FIRING).is_file():
        return None
    if (export / FIRING).stat().st_mtime < (export / WEIGHTS).stat().st_mtime:
        return None
    rate_F = load_firing_rates(export)
    return rate_F if rate_F is not None and len(rate_F) == sae.num_latents else None


def open_source(cfg: Resolved, device: torch.device) -> Source:
    """Open a run's held-out activations.

    Raises:
        ConfigError: the LLM or the text is not on this machine.
    """
    if cfg.reads_file:
        file, reason = file_rows(cfg), "activations come from a file: there is no text, and no language model"
        return Source(lambda: read_rows_of(file, device), no_text=reason, no_effects=reason)
    if cfg.is_synthetic:
        reason = "activations are synthetic: there is no text, and no language model"
        return Source(lambda: read_rows_of(held_out(cfg), device), no_text=reason, no_effects=reason)
    facts, _ = llm_facts(cfg.llm, cfg.hook, cfg.target_hook)
    no_effects = why_none(facts)
    if too_large := why_not_held(facts, cfg.llm.dtype, device):
        raise ConfigError(f"llm.name={cfg.llm.name} is not read: {too_large}")
    if no_effects is None:
        llm, no_effects = load_to_splice(cfg.llm, facts, device)
    else:
        llm = up_to_hook(cfg.llm, facts, device)
    return Source(lambda: read_text(cfg, facts, llm), llm=llm, no_effects=no_effects)
