"""The latents of a report from the atlas of its run: no pass over text, and no language model.

Letters: as core.types.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from sae_dist.atlas.find.direction import check_same
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.read.rows import Example, Latent, TokenLogit
from sae_dist.atlas.schema import MANIFEST, TOP
from sae_dist.config.run import Resolved
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import ATLAS, EXPORT
from sae_dist.core.text import print_line
from sae_dist.evaluation.report.collect import choose
from sae_dist.evaluation.report.firing import OF_EACH, Context
from sae_dist.evaluation.report.firing import TOP as SHOWN
from sae_dist.evaluation.report.latents import Latents, read_latents
from sae_dist.evaluation.report.logits import TOKENS, Effect
from sae_dist.export.saelens import load_exported


@dataclass(frozen=True)
class Charted:
    """The firings of a latent, as an atlas has them: a `Fired`.

    Attributes:
        about: what the atlas says of it; examples: places where it fires.
    """

    about: Latent
    examples: list[Example]

    @property
    def latent(self) -> int:
        """The number of the latent."""
        return self.about.latent

    @property
    def fired(self) -> int:
        """The number of activations on which it fired."""
        return self.about.count

    @property
    def total(self) -> float:
        """The sum of its codes."""
        return self.about.sum

    @property
    def histogram(self) -> "Charted":
        """The histogram of its codes."""
        return self

    def shown(self) -> tuple[list[int], float]:
        """Return the counts of equal bins from 0 to its greatest code, and that code."""
        return list(self.about.histogram), self.about.most

    @property
    def top(self) -> list[Context]:
        """The contexts of its greatest codes, one for each document."""
        return [_context(each) for each in self.examples if each.bin == TOP][:SHOWN]

    def drawn(self) -> list[tuple[str, list[Context]]]:
        """Return contexts drawn at random from each bin of its codes, and which codes that has."""
        found = []
        for number, count in enumerate(self.about.bins):
            own = [_context(each) for each in self.examples if each.bin == number][:OF_EACH]
            high = self.about.most * 0.5**number
            low = f"{high / 2:.3g} to " if number + 1 < len(self.about.bins) else "up to "
            if own:
                found.append((f"{low}{high:.3g}: {count:,} of {self.about.count:,}", own))
        return found


def latents_of(cfg: Resolved, folder: Path) -> Latents:
    """Return the latents of a report: from the atlas where there is one, else by `read_latents`.

    Raises:
        ConfigError: there is no export, or the atlas is damaged.
        DataError: there are no held-out activations.
    """
    if (folder / ATLAS / MANIFEST).is_file():
        atlas = Atlas.open(folder / ATLAS)
        try:
            check_same(folder / EXPORT, str(atlas.facts["dictionary"]))
            return of_atlas(folder, atlas)
        except ConfigError as error:
            print_line(f"{error}; the report reads held-out activations in its place")
    return read_latents(cfg, folder)


def of_atlas(folder: Path, atlas: Atlas) -> Latents:
    """Return what an atlas says of thirty latents, and the rates of all.

    Raises:
        ConfigError: it is of another number of latents than the export, or a file is damaged.
    """
    sae, kept = load_exported(folder / EXPORT), int(atlas.facts["kept"])
    if sae.num_latents != atlas.num_latents:
        raise ConfigError(f"{atlas.folder} is of {atlas.num_latents:,} latents, not of {sae.num_latents:,}")
    rate_F = torch.from_numpy(atlas.rates).float()
    groups = choose(rate_F, kept)
    chosen = [latent for group in groups for latent in group.latents]
    about = {latent: atlas.latent(latent) for latent in chosen}
    without = [latent for latent in chosen if about[latent].up is None]
    effects = {latent: _effect(each) for latent, each in about.items() if latent not in without}
    return Latents(
        sae,
        rate_F=rate_F,
        rows=kept,
        groups=tuple(groups),
        firings={latent: Charted(about[latent], atlas.examples(latent)) for latent in chosen},
        effects=effects or None,
        decoder=atlas.words.decoder,
        no_text=atlas.words.lacking,
        no_effects=(atlas.facts["effects"] or "the atlas has none") if without else None,
        of=f"activations of its atlas ({atlas.facts['text']})",
        drawn_by="range",
    )


def _effect(about: Latent) -> Effect:
    def named(each: tuple[TokenLogit, ...] | None) -> list[tuple[str, float]]:
        return [(one.text, one.logit) for one in each or ()][:TOKENS]

    return Effect(named(about.up), named(about.down))


def _context(example: Example) -> Context:
    tokens = example.context.tokens
    return Context(
        code=example.code,
        at=[each.at for each in tokens].index(example.context.at),
        ids=tuple(each.id for each in tokens),
        codes=tuple(each.code for each in tokens),
        row=example.context.at,
    )
