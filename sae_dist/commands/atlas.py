"""The command `sae-dist atlas`: every latent of a run's dictionary, after one pass over text."""

from pathlib import Path

from sae_dist.commands.arguments import options_of
from sae_dist.config.trust import granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show

PAGES = "pages"
LONGEST, MOST_CHOSEN = 40, 1_000_000


def help_text() -> str:
    """Return the help text."""
    return """\
Reads text once with the run's model and dictionary, on the same ranks as training, and writes RUN/atlas.
For each latent: where it fires and how strongly, its rate, examples of every strength, the tokens that it
fires on and those that follow, what it does to the logits, its nearest decoder rows, and the latents that
fire with it. Tables are Parquet files; docs/atlas.md lists their columns.

  atlas.tokens=10M          activations to read, in whole chunks; held-out text may be shorter
  atlas.text=held_out       held_out | training: of the run; or a file or folder; or tar files of tokens
  atlas.top=20              examples of the greatest codes of each latent, one a document
  atlas.bins=5 atlas.each=5 5 examples of each of 5 ranges of codes: above 1/2 of the greatest, above 1/4, ...
  atlas.few=10              a latent that fires less often is called too rare
  atlas.lens=1              chunks of text on which the mean Jacobian to the logits is fitted; 0: without
  atlas.near=true           nearest decoder rows even where they take over an hour; false: without
  atlas.lanes=24            streams of documents; more than ranks
  topology.shard=4          ranks that share the latents; topology.dp, topology.producers as in training
  device=cpu                where to compute; default: as the run
  resume=auto               continue an unfinished atlas, with any topology
  llm.trust_remote_code=true  run the code that the run's model brings along; a run folder does not grant it

The tables are the same, byte for byte, for any topology, and after any number of starts.

An atlas that is there is handed on in the format of another tool, or as a folder of pages for a web host:

  --format NAME             neuronpedia | circuit_tracer | delphi | pages
  --latents 3,17,100-199    these latents only; pages need some
  --out FOLDER              a new folder; default: RUN/atlas/NAME

Examples:
  sae-dist atlas outputs/my_run atlas.tokens=2M atlas.text=training
  sae-dist atlas outputs/my_run topology.producers=2 topology.shard=2
  sae-dist atlas outputs/my_run --format pages --latents 0-99 --out my_pages
"""


def run(arguments: list[str]) -> None:
    """Make the atlas of a run, or hand it on.

    Raises:
        SaeDistError: see `launch.atlas.atlas_command`, `atlas.formats.write.write_format`.
    """
    options, rest = options_of(arguments, "atlas", ("--format", "--latents", "--out"))
    rest, granted = granted_by(rest)
    folders = [each for each in rest if "=" not in each or "/" in each.split("=")[0] or Path(each).is_dir()]
    if len(folders) != 1:
        raise ConfigError(
            "sae-dist atlas needs one run folder, such as outputs/my_run; see sae-dist atlas --help"
        )
    words = [each for each in rest if each != folders[0]]
    if "--format" in options:
        if words:
            raise ConfigError(f"{words[0]}: an atlas is handed on as it is; leave it out")
        _hand_on(Path(folders[0]), options)
        return
    if options:
        raise ConfigError(f"{next(iter(options))} goes with --format neuronpedia, for example")
    from sae_dist.launch.atlas import atlas_command

    atlas_command(Path(folders[0]), words, granted)


def _hand_on(folder: Path, options: dict[str, str]) -> None:
    from sae_dist.atlas.formats.write import FORMATS, write_format
    from sae_dist.atlas.read.atlas import Atlas

    name, chosen = options["--format"], options.get("--latents")
    if name not in (*FORMATS, PAGES):
        raise ConfigError(f"--format {name} is none of {', '.join((*FORMATS, PAGES))}")
    latents = None if chosen is None else latents_of(chosen)
    if name == PAGES and latents is None:
        raise ConfigError(
            "--format pages needs --latents, such as --latents 0-99: a page is written for each"
        )
    atlas = Atlas.open(folder)
    out = Path(options["--out"]) if "--out" in options else atlas.folder / name
    if name == PAGES:
        from sae_dist.serve.static import write_pages

        assert latents is not None
        show(f"open {write_pages(atlas, out, latents)} in a browser")
        return
    show(f"{write_format(atlas, name, out, latents)}")


def latents_of(text: str) -> list[int]:
    """Return the numbers of `3,17,100-199`, ascending.

    Raises:
        ConfigError: it is no such list, or a range of more than MOST_CHOSEN.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() if dash else not last)) or len(part) > LONGEST:
            raise ConfigError(f"--latents {text} is no list of latents; write them as 3,17,100-199")
        chosen = range(int(first), int(last or first) + 1)
        if len(found) + len(chosen) > MOST_CHOSEN:
            raise ConfigError(f"--latents {text} are more than {MOST_CHOSEN:,}; leave it out for all latents")
        found.update(chosen)
    return sorted(found)
