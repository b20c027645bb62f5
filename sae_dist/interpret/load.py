"""Opens a dictionary for use: a run, an export, another library's files, or a repository of the Hub."""

from pathlib import Path

import torch

from sae_dist.config.grid import member_folders, single
from sae_dist.config.run import Single, load_config, recorded_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.run_folder import CONFIG, EXPORT
from sae_dist.core.text import quoted
from sae_dist.export.fetched import fetched
from sae_dist.export.importing import Imported
from sae_dist.export.names import FILES, format_of
from sae_dist.export.saelens import SAE_CONFIG
from sae_dist.interpret.dictionary import Dictionary
from sae_dist.interpret.place import Place

SHOWN = 4


def load(
    where: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    format: str | None = None,
    transcoder: bool = False,
    verify: bool | None = None,
) -> Dictionary:
    """Open a dictionary, read-only: its weights are mapped, so that this takes no time and no memory.

    Args:
        where: a run folder; an export; a folder, or a file in it, in a format that `sae-dist import` reads;
            or a repository of the Hugging Face Hub, `organisation/name` or `organisation/name/folder`.
        device: of the weights; anywhere but the CPU they are copied.
        dtype: of the weights and codes; None: as they are stored.
        format: the format of the files; None: the one whose files are there.
        transcoder: it is one, where its format does not say.
        verify: read all files once, to find damage: by the checksums that exports carry, and tensors that
            hold NaN or inf; None: of files of up to 256 MiB in all. Their headers, shapes and dtypes are
            always checked.

    Raises:
        ConfigError: there is no dictionary, or its files are damaged or mean another computation.
    """
    place = Path(where).expanduser()
    if not place.exists():
        place = fetched(str(where))
    run = _run_of(place)
    if run is not None and format not in (None, "saelens"):
        raise ConfigError(f"format={format}: {place} is a run, of which its export is read; leave it out")
    folder = place / EXPORT if run is not None else place
    if run is not None and not (folder / SAE_CONFIG).is_file():
        raise ConfigError(f"{place} has no export yet; write one: sae-dist export {quoted(place)}")
    layout = "saelens" if run is not None else _format(folder, format)
    imported = Imported.read(folder, layout, transcoder, verify)
    if run is None and imported.source.name == EXPORT:
        run = _run_of(imported.source.parent)
    sae = imported.sae
    if torch.device(device).type != "cpu" or dtype is not None:
        sae = sae.to(torch.device(device), dtype)
    own_code = run is not None and recorded_config(imported.source.parent / CONFIG).llm.trust_remote_code
    return Dictionary(sae, Place(imported.source, run, dict(sae.metadata), own_code))


def _format(place: Path, name: str | None) -> str | None:
    """Return the format to read; a folder with several, as ours on the Hub, is read in SAELens'.

    Raises:
        ConfigError: the format is unknown, or there is no dictionary.
    """
    if name is not None and name not in FILES:
        raise ConfigError(f"format={name} is not known; the formats are {', '.join(FILES)}")
    if name is None and place.is_dir() and (place / SAE_CONFIG).is_file():
        if (place / FILES["saelens"][1]).exists():
            return "saelens"
    return name or format_of(place)


def _run_of(place: Path) -> Single | None:
    """Return the config of the run in a folder; None: it is no run folder.

    Raises:
        ConfigError: it is the folder of a grid, or its config is damaged.
    """
    # The config of a circuit-tracer set has the same name.
    if not (place / CONFIG).is_file() or any(place.glob(FILES["circuit_tracer"][1])):
        return None
    cfg = load_config(place / CONFIG)
    if cfg.is_grid:
        inside = [str(each) for each in member_folders(cfg, place)]
        more = f" and {len(inside) - SHOWN} more" if len(inside) > SHOWN else ""
        raise ConfigError(f"{place} is a grid; load one of its runs: {', '.join(inside[:SHOWN])}{more}")
    return single(cfg, place)
