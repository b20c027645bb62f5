"""A run folder of a dictionary that was trained elsewhere."""

from pathlib import Path
from typing import TYPE_CHECKING

from sae_dist.config.plain import fitting
from sae_dist.config.run import RunConfig, schema
from sae_dist.core import run_folder
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.text import print_line

if TYPE_CHECKING:
    from sae_dist.export.importing import Imported


def import_run(place: Path, layout: str | None, overrides: list[str]) -> Path:
    """Make a run folder of a dictionary: config, provenance and export. Return where it is.

    Args:
        place: where the dictionary's files are, or one of them.
        layout: a format's name; None: the one whose files are there.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    from sae_dist.config.validate import validate
    from sae_dist.export.importing import Imported
    from sae_dist.launch.freeze import freeze
    from sae_dist.launch.settle import settle
    from sae_dist.train.export import origin

    given = {word.partition("=")[0].lstrip("+") for word in overrides}
    imported = Imported.read(place, layout, "target_hook" in given)
    cfg = _composed(imported, overrides, given)
    assert cfg.name is not None, "checked as it was composed"
    run = Path(cfg.output).expanduser() / cfg.name
    if run.exists():
        raise ConfigError(f"{run} exists; choose another name= or output=")
    validate(cfg)
    settled = settle(cfg)
    if imported.columns != settled.columns:
        raise ConfigError(
            f"{imported.source} is for activations of width {imported.columns}, and those at "
            f"hook={settled.cfg.hook} have {settled.columns}; choose another hook"
        )
    settled.cfg.sae.start = str((run / run_folder.EXPORT).resolve())
    validate(settled.cfg)
    frozen = freeze(settled.cfg, settled.columns)
    said = imported.says().get("llm.name")
    try:
        imported.write(frozen.folder, origin(settled.cfg, {}), given)
    except SaeDistError:
        frozen.discard()
        raise
    finally:
        frozen.release()
    for line in (settled.note, _another_model(said, settled.cfg.llm.name)):
        if line:
            print_line(line)
    return frozen.folder


def _composed(imported: "Imported", overrides: list[str], given: set[str]) -> RunConfig:
    """Return the config of what the files say and the user gave.

    Raises:
        ConfigError: the name of the run or a hook is missing.
    """
    from sae_dist.export.names import proposed_hook
    from sae_dist.launch.overrides import written
    from sae_dist.launch.settle import composed

    source = imported.source
    more = {key: value for key, value in imported.says().items() if key not in given}
    for key, value in more.items():
        _check_said(source, key, value)
    cfg = composed([*(f"{key}={written(value)}" for key, value in more.items()), *overrides])
    if cfg.name is None:
        raise ConfigError("name must be given: write name=..., the run folder in output=outputs")
    if cfg.runs_llm and cfg.hook is None:
        hook = proposed_hook(source)
        example = f"its folder's name suggests hook={hook}" if hook else "such as hook=layers.10"
        raise ConfigError(f"{source} does not say its hook; write hook=..., {example}")
    if imported.sae.transcoder and cfg.target_hook is None:
        raise ConfigError(f"{source} is a transcoder and does not say where to; write target_hook=...")
    return cfg


def _check_said(source: Path, key: str, value: object) -> None:
    """Check that a value from a dictionary's files fits its key of the config, and is nothing but a value.

    Raises:
        ConfigError: it does not, or would be resolved: it could name a variable of this environment.
    """
    try:
        if key != "sae":  # the group, whose option `says` chose
            fitting(value, schema()[key], key)
        if "${" in str(value):
            raise ValueError(f"{key}={value} would be resolved")
    except ValueError as error:
        raise ConfigError(f"{source}: {error}; give {key}=... yourself") from None


def _another_model(said: str | None, used: str) -> str | None:
    """Return a line if a dictionary's files name another model than the one it is put on."""
    if said is None or Path(said).name.lower() == Path(used).name.lower():
        return None
    return f"the files name llm.name={said}; used on llm.name={used}, whose activations may be others"
