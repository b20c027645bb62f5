"""Training that begins with the weights of a finished dictionary (`sae.start`).

Letters: as core.types; F all latents, N those of this shard.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor

from sae_dist.config.kinds import SELECTED
from sae_dist.config.run import RunConfig, Single
from sae_dist.core.errors import ConfigError
from sae_dist.dictionary.base import dictionary_class
from sae_dist.dictionary.latents import levels
from sae_dist.export.exported import ExportedSae, tiles
from sae_dist.export.fold import to_tensors
from sae_dist.export.names import start_folder
from sae_dist.export.saelens import WEIGHTS, open_exported
from sae_dist.export.sound import check_files, check_numbers
from sae_dist.train.state import Run

UNIT_ERROR = 1e-3


def with_start(cfg: RunConfig, start: str) -> RunConfig:
    """Return a copy of a config that begins with an export: its folder, and its width unless one is given.

    Args:
        start: `sae.start` as it is written, a run or an export.

    Raises:
        ConfigError: there is no such export.
    """
    cfg = copy.deepcopy(cfg)
    folder = start_folder(start)
    cfg.sae.start = str(folder.resolve())
    if cfg.sae.num_latents is None and cfg.sae.expansion is None:
        cfg.sae.num_latents = open_exported(folder).num_latents
    return cfg


def check_start(cfg: Single, start: str, columns: int) -> None:
    """Check that training can begin with a finished dictionary.

    Args:
        start: the folder of its export.
        columns: width of the activations, of a transcoder D + E.

    Raises:
        ConfigError: it is damaged, or of another kind or size.
    """
    check_files(Path(start), [Path(start) / WEIGHTS])
    sae, said = open_exported(Path(start)), f"sae.start={start}"
    check_numbers(Path(start) / WEIGHTS, sae)
    if sae.num_latents != cfg.sae.num_latents:
        raise ConfigError(f"{said} has {sae.num_latents} latents; use sae.num_latents={sae.num_latents}")
    if sae.transcoder != (cfg.target_hook is not None) or (sae.W_skip_ED is not None) != cfg.sae.skip:
        form = "a transcoder" if sae.transcoder else "an autoencoder"
        skip = " with skip" if sae.W_skip_ED is not None else ""
        raise ConfigError(f"{said} is {form}{skip}; give target_hook and sae.skip as it has them")
    own = sae.width + (len(sae.b_dec_E) if sae.transcoder else 0)
    if own != columns:
        raise ConfigError(f"{said} is for activations of width {own}, not {columns}; choose another hook")
    selected = cfg.sae.kind in SELECTED
    kind = dictionary_class(cfg.sae.kind)
    if sae.kind != kind.form and not (selected and sae.kind in map(_form, SELECTED)):
        raise ConfigError(f"{said} is a {sae.kind} dictionary; use sae={sae.kind}")
    if (problem := kind.cannot_start_from(sae.vectors)) is not None:
        raise ConfigError(f"{said} has {problem}")
    if selected:
        _check_rows(said, sae)


def _form(kind: str) -> str:
    return dictionary_class(kind).form


def _check_rows(said: str, sae: ExportedSae) -> None:
    """Refuse rows that are not of unit length: with unit rows, ranking would select other codes."""
    norms_F = torch.cat([tile.W_dec_FE.norm(dim=1) for _, tile in tiles(sae)])
    low, high = float(norms_F.min()), float(norms_F.max())
    if max(1 - low, high - 1) > UNIT_ERROR:
        raise ConfigError(
            f"{said} has decoder rows of norm {low:.4g} to {high:.4g}; kinds that select codes are trained "
            "with unit rows, with which this dictionary would select others"
        )


@torch.no_grad()
def begin_with(run: Run, start: str) -> None:
    """Set the weights of this rank's shard to those of a finished dictionary; only that part is read."""
    tensors = {name: tensor for name, (tensor, _) in run.dictionary.state().items()}
    rows, master = len(tensors["W_dec"]), tensors["b_dec"].dtype
    index_N = _stored_at(run.cfg)[run.topology.shard.rank * rows :][:rows]
    part = open_exported(Path(start)).tile(index_N)
    shift_C = run.shift_C.cpu().to(part.W_dec_FE.dtype)
    unit_rows = "W_dec" in run.dictionary.unit_rows
    found = to_tensors(type(run.dictionary), part, run.scales, shift_C, unit_rows)
    for name, value in found.items():
        tensors[name].copy_(value.to(tensors[name].device, master))


def _stored_at(cfg: Single) -> Tensor:
    """Return the place in an export of each latent in training, [F]: matryoshka's are sorted by level."""
    if cfg.sae.prefixes is None:
        return torch.arange(cfg.sae.num_latents)
    return levels(cfg.sae.num_latents, cfg.sae.prefixes).argsort(stable=True).argsort()
