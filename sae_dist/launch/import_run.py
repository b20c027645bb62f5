"""A run folder of a dictionary that was trained elsewhere."""

import sys
from pathlib import Path

from sae_dist.core import run_folder
from sae_dist.core.errors import ConfigError, SaeDistError


def import_run(folder: Path, layout: str | None, overrides: list[str]) -> Path:
    """Make a run folder of a dictionary: config, provenance and export. Return where it is.

    Args:
        folder: where the dictionary's files are.
        layout: a format's name; None: the one whose files are there.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    from sae_dist.config.validate import validate
    from sae_dist.export.importing import Imported
    from sae_dist.launch.freeze import freeze
    from sae_dist.launch.settle import composed, settle

    imported = Imported.read(folder, layout)
    known = {word.partition("=")[0].lstrip("+") for word in overrides}
    more = {key: value for key, value in imported.says().items() if key not in known}
    cfg = composed([*(f"{key}={_written(value)}" for key, value in more.items()), *overrides])
    if cfg.name is None:
        raise ConfigError("name must be given: write name=..., the run folder in output=outputs")
    if cfg.runs_llm and cfg.hook is None:
        raise ConfigError(f"{imported.source} does not say its hook; write hook=..., such as hook=layers.10")
    if imported.sae.transcoder and cfg.target_hook is None:
        raise ConfigError(
            f"{imported.source} is a transcoder and does not say where to; write target_hook=..."
        )
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
    try:
        imported.write(frozen.folder)
    except SaeDistError:
        frozen.discard()
        raise
    if settled.note:
        print(settled.note, file=sys.stderr)
    return frozen.folder


def _written(value: object) -> str:
    """Return a value as Hydra reads it; text is quoted, since it comes from a file."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
