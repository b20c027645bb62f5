"""The words of `sae-dist export` and `sae-dist import`. Help and wrong words are answered at once."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sae_dist.core import run_folder
from sae_dist.core.errors import ConfigError, SaeDistError

if TYPE_CHECKING:
    from sae_dist.train.importing import Imported

FORMATS = ("saelens", "sparsify", "dictionary_learning")
EXPORT = """sae-dist export RUN [--format F ...] [--push ORG/REPO [--folder-only]]

Writes the newest checkpoint of a run into RUN/export, scaling folded in, float32, a few latents at a time: a
dictionary larger than this machine's memory can be exported. An unfinished run is exported as it stands.

  --format saelens              RUN/export: sae_weights.safetensors, cfg.json   (the default)
  --format sparsify             RUN/export/sparsify: sae.safetensors, cfg.json; topk only
  --format dictionary_learning  RUN/export/dictionary_learning: ae.pt, config.json; autoencoders only
                                several formats: --format again
  --push ORG/REPO               put these and a model card into RUN/hub, and upload that to the Hugging Face
                                Hub, with the token that huggingface_hub finds (hf auth login)
  --folder-only                 with --push: make the folder, upload nothing

Examples:
  sae-dist export outputs/my_run --format saelens --format sparsify
  sae-dist export outputs/my_run --push me/my-dictionary
"""
IMPORT = """sae-dist import FOLDER name=... [--format F] [key=value ...]

Makes a run folder of a dictionary in the layout of SAELens, sparsify or dictionary_learning, whoever trained
it: sae-dist eval and sae-dist export take that folder, and sae-dist train can begin with its weights
(sae.start=RUN). Takes the keys of sae-dist train (train --help); those of the dictionary are read from its
files, llm.name, hook and tokens.context as far as these say them. Of a pickle (ae.pt) only tensors are read.

  --format F    saelens, sparsify or dictionary_learning; by default whose files there are
  name=...      the run folder in output=outputs
  llm.name=...  the language model; hook=... (and target_hook=... of a transcoder) where in it

Examples:
  sae-dist import downloads/layers.10 name=theirs llm.name=EleutherAI/pythia-160m hook=layers.10
  sae-dist eval outputs/theirs
  sae-dist train sae.start=outputs/theirs sae.k=32 llm.name=EleutherAI/pythia-160m hook=layers.10
"""


class Parser(argparse.ArgumentParser):
    """Wrong words are a ConfigError; help is ours."""

    def __init__(self, prog: str):
        super().__init__(prog=prog, add_help=False, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def export_command(words: list[str]) -> None:
    """`sae-dist export`.

    Raises:
        SaeDistError: see `train.export.export_run`, and `export.hub.push`.
    """
    if "--help" in words or "-h" in words:
        print(EXPORT, end="")
        return
    parser = Parser("sae-dist export")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--format", dest="formats", action="append", choices=FORMATS)
    parser.add_argument("--push", metavar="ORG/REPO")
    parser.add_argument("--folder-only", action="store_true")
    given = parser.parse_args(words)
    if given.folder_only and not given.push:
        raise ConfigError("--folder-only says what --push does not do; give --push ORG/REPO too")
    from sae_dist.train.export import export_run

    formats = list(dict.fromkeys(given.formats or FORMATS[:1]))
    if not given.push:
        print("\n".join(map(str, export_run(given.run, formats))))
        return
    from sae_dist.train.export import publish

    print(publish(given.run, formats, given.push, upload_it=not given.folder_only))


def import_command(words: list[str]) -> None:
    """`sae-dist import`: config, provenance and export of a run that begins with this dictionary.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    if "--help" in words or "-h" in words:
        print(IMPORT, end="")
        return
    parser = Parser("sae-dist import")
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--format", choices=FORMATS)
    given = parser.parse_intermixed_args(words)
    if "=" in given.folder.name and not given.folder.exists():
        raise ConfigError(
            f"sae-dist import takes the folder first, then {given.folder} and other key=value words"
        )

    from sae_dist.train.importing import Imported

    print(_make_run(given.overrides, Imported.read(given.folder, given.format)))


def _make_run(overrides: list[str], imported: "Imported") -> Path:
    from sae_dist.config.validate import validate
    from sae_dist.launch.freeze import freeze
    from sae_dist.launch.settle import composed, settle

    known = {word.partition("=")[0].lstrip("+") for word in overrides}
    more = {key: value for key, value in imported.says().items() if key not in known}
    cfg = composed([*(f"{key}={_written(value)}" for key, value in more.items()), *overrides])
    if cfg.name is None:
        raise ConfigError("name must be given: write name=..., the run folder in output=outputs")
    if cfg.activations.kind == "llm" and cfg.hook is None:
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
    """A value as Hydra reads it; text is quoted, since it comes from a file."""
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value).replace(" ", "")
