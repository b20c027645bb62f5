"""The command `sae-dist atlas`: every latent of a run's dictionary, after one pass over text."""

from pathlib import Path

from sae_dist.config.trust import granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import print_line, visible

FORMAT = "--format"
VALUES = (FORMAT, "--latents", "--out")


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
  atlas.lanes=24            streams of documents; more than ranks
  topology.shard=4          ranks that share the latents; topology.dp, topology.producers as in training
  device=cpu                where to compute; default: as the run
  resume=auto               continue an unfinished atlas, with any topology
  llm.trust_remote_code=true  run the code that the run's model brings along; a run folder does not grant it

An atlas that is there is handed on to other tools, in a folder of its own:

  --format F      neuronpedia | circuit_tracer | delphi
  --latents 3,77  those latents; default: all
  --out FOLDER    a new folder; default: RUN/atlas/F

The tables are the same, byte for byte, for any topology, and after any number of starts.

Examples:
  sae-dist atlas outputs/my_run atlas.tokens=2M atlas.text=training
  sae-dist atlas outputs/my_run topology.producers=2 topology.shard=2
  sae-dist atlas outputs/my_run --format neuronpedia
"""


def run(arguments: list[str]) -> None:
    """Make the atlas of a run.

    Raises:
        SaeDistError: see `launch.atlas.atlas_command`.
    """
    if any(each.partition("=")[0] == FORMAT for each in arguments):
        hand_on(arguments)
        return
    rest, granted = granted_by(arguments)
    for argument in rest:
        if argument.startswith("-"):
            raise ConfigError(
                f"sae-dist atlas has no option {argument}; there are keys such as atlas.tokens=2M"
            )
    folders = [each for each in rest if "=" not in each or "/" in each.split("=")[0] or Path(each).is_dir()]
    if len(folders) != 1:
        raise ConfigError(
            "sae-dist atlas needs one run folder, such as outputs/my_run; see sae-dist atlas --help"
        )
    from sae_dist.launch.atlas import atlas_command

    atlas_command(Path(folders[0]), [each for each in rest if each != folders[0]], granted)


def hand_on(arguments: list[str]) -> None:
    """Write an atlas in another tool's format.

    Raises:
        ConfigError: an argument is wrong; or see `atlas.formats.write.write_format`.
    """
    given, plain = {}, []
    rest = iter(arguments)
    for each in rest:
        key, equals, value = each.partition("=")
        if key in VALUES:
            given[key] = value if equals else next(rest, "")
            if not given[key]:
                raise ConfigError(f"{key} needs a value; see sae-dist atlas --help")
        else:
            plain.append(each)
    if len(plain) != 1 or plain[0].startswith("-"):
        raise ConfigError(
            f"sae-dist atlas {FORMAT} needs one run folder, and got {' '.join(plain) or 'none'}; "
            "see sae-dist atlas --help"
        )
    from sae_dist.atlas.formats.write import write_format

    chosen = given["--latents"].split(",") if "--latents" in given else None
    for latent in chosen or ():
        if not latent.isdecimal() or len(latent) > 12:
            raise ConfigError(f"--latents {latent[:40]}: give numbers, such as 3,77")
    out = write_format(
        Path(plain[0]),
        given[FORMAT],
        Path(given["--out"]) if "--out" in given else None,
        [int(latent) for latent in chosen] if chosen is not None else None,
    )
    print_line(f"written: {visible(str(out))}")
