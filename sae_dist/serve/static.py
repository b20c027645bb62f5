"""Pages of some latents as a folder of files, for any web host or none: no server, nothing fetched."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.serve.links import ASSETS, LATENTS, Links
from sae_dist.serve.site import PAGES, Site

FILES = ("atlas.css", "atlas.js", "atlas.svg")
MOST = 100_000
"""Latents of a folder; the start lists them all on a page."""


def write_pages(atlas: Atlas, out: Path, latents: Iterable[int]) -> Path:
    """Write a page of each of some latents and one that lists them; return that one, which is written last.

    Args:
        out: the folder; it must be new or empty.
        latents: in the order of the list; one that comes twice has one page.

    Raises:
        ConfigError: a latent does not exist, none or too many are chosen, the folder has files, or the atlas
            is damaged.
    """
    chosen = list(dict.fromkeys(atlas.checked(each) for each in latents))
    if not 0 < len(chosen) <= MOST:
        raise ConfigError(f"pages of {len(chosen):,} latents: choose 1 to {MOST:,}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} has files already; give a folder that is new or empty")
    site, known = Site(atlas), frozenset(chosen)
    for name in (ASSETS, LATENTS):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(PAGES / name, out / ASSETS / name)
    links = Links("../", known)
    for latent, before, after in zip(chosen, [None, *chosen], [*chosen[1:], None], strict=False):
        write_text(out / LATENTS / f"{latent}.html", site.latent(latent, links, (before, after)))
    start = out / "index.html"
    write_text(start, site.chosen(chosen, Links("", known)))
    return start
