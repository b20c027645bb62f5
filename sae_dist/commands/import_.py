"""The command `sae-dist import`: a run folder of a dictionary that was trained elsewhere."""

from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show
from sae_dist.export.names import FILES, format_of
from sae_dist.launch.arguments import Parser

HELP = """\
Makes a run folder of a dictionary in the layout of SAELens, sparsify, dictionary_learning, circuit-tracer or
Gemma Scope (1 and 2). sae-dist eval and sae-dist export accept that folder, and sae-dist train can start from
its weights (sae.start=RUN). Accepts the keys of sae-dist train (train --help); those of the dictionary are
read from its files, and so are llm.name, hook and tokens.context where the files hold them. Of a pickle
(ae.pt) only tensors are read.

  --format F    {formats}
                (default: the one whose files are there)
  name=...      the run folder below output=outputs
  llm.name=...  the language model; hook=... (and target_hook=... of a transcoder) where in it

Examples:
  sae-dist import gemma-scope/layer_12 name=scope llm.name=google/gemma-2-2b hook=layers.12
  sae-dist import downloads/layers.10 name=theirs llm.name=EleutherAI/pythia-160m hook=layers.10
  sae-dist eval outputs/theirs
  sae-dist train sae.start=outputs/theirs sae.k=32 llm.name=EleutherAI/pythia-160m hook=layers.10
"""


def help_text() -> str:
    """Return the help text."""
    return HELP.format(formats=", ".join(FILES))


def run(arguments: list[str]) -> None:
    """Make the run folder and print where it is.

    Raises:
        ConfigError: the input is wrong; nothing was written.
    """
    parser = Parser("sae-dist import", add_help=False, allow_abbrev=False)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    parser.add_argument("overrides", metavar="key=value", nargs="*")
    parser.add_argument("--format", choices=list(FILES))
    given = parser.parse_intermixed_args(arguments)
    if "=" in given.folder.name and not given.folder.exists():
        raise ConfigError(
            f"{given.folder}: sae-dist import needs the folder first, then key=value; "
            "see sae-dist import --help"
        )
    layout = given.format or format_of(given.folder)
    from sae_dist.launch.import_run import import_run
    from sae_dist.launch.options import tell_defaults

    tell_defaults()
    show(import_run(given.folder, layout, given.overrides))
