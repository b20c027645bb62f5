"""The command `sae-dist find`: which latents of an atlas belong to a text, a token, a pattern or a latent."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.commands.arguments import options_of
from sae_dist.config.trust import REMOTE_CODE, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show

if TYPE_CHECKING:
    from sae_dist.atlas.read.atlas import Atlas

WAYS = ("--token", "--regex", "--direction", "--label", "--together")
VALUES = (*WAYS, "--top", "--model", "--tokens")
FLAGS = ("--json", "--exact", "--quick")
LATENT = "latent:"


def help_text() -> str:
    """Return the help text."""
    return """\
Finds latents in a run's atlas (sae-dist atlas RUN makes it), best first, and says which way it searched.
A text is encoded with the run's model and dictionary: latents by the sum of their codes times idf, -log2 of
their rate. Where the model is not on this machine, the places where its words occur are looked up instead.

  "golden gate"          a text, encoded
  --token " the"         latents whose firing says most about being at a token; an id as id:262
  --regex "\\bcolou?r"    matches in the contexts of examples (RE2's expressions)
  --direction FILE.npy   nearest decoder rows to a vector; latent:123: to those of a latent
  --label "dates"        words of labels; beginnings of words, too
  --together 123         latents that fire at the same places; 123,456: where both do

  --top N         show so many latents (20)
  --json          print everything as JSON
  --exact         by token and co-firing: read all postings, some 40M a second; --quick: lists only.
                  Default: all postings, up to 67M of them
  --tokens 20M    by pattern: tokens of the text that are looked at
  --model NAME    a model's name or folder that encodes the text, in place of the run's
  llm.trust_remote_code=true    run the code that the model brings along

Examples:
  sae-dist find outputs/my_run "golden gate"
  sae-dist find outputs/my_run --token " the" --top 5
  sae-dist find outputs/my_run --direction latent:123 --json
"""


@dataclass(frozen=True)
class Asked:
    """The arguments of the command; `how` is what `Atlas.find` takes."""

    where: str
    how: dict[str, Any]
    as_json: bool
    model: str | None


def run(arguments: list[str]) -> None:
    """Find latents and print them.

    Raises:
        ConfigError: an argument is wrong, there is no atlas, or nothing is found by it.
    """
    arguments, granted = granted_by(arguments)
    asked = parsed(arguments)
    from sae_dist.atlas.read.atlas import Atlas

    atlas = Atlas.open(asked.where)
    if "text" in asked.how:
        _give_model(atlas, asked.model, granted.get(REMOTE_CODE, False))
    found = atlas.find(**asked.how)
    show(found.to_json() if asked.as_json else found)


def _give_model(atlas: "Atlas", name: str | None, trusted: bool) -> None:
    """Let an atlas encode texts with the dictionary beside it; without one, the search says why later."""
    from sae_dist.interpret.charted import Encoding
    from sae_dist.interpret.load import load
    from sae_dist.interpret.model import model

    def encode(text: str) -> Any:
        d = load(atlas.folder.parent)
        encoding = d.atlas(model(d, name, trust_remote_code=trusted), force=name is not None).encode
        assert isinstance(encoding, Encoding)
        return encoding(text)

    atlas.encode = encode


def parsed(arguments: list[str]) -> Asked:
    """Return the arguments once they are known to be right.

    Raises:
        ConfigError: one is unknown, or has no value, or one is missing, or two ways are asked for.
    """
    flags = {each for each in arguments if each in FLAGS}
    given, plain = options_of([each for each in arguments if each not in FLAGS], "find", VALUES)
    ways = [key for key in WAYS if key in given]
    if not plain or len(plain[1:]) + len(ways) != 1:
        raise ConfigError(
            "sae-dist find needs a run and one thing to look for, such as outputs/my_run "
            f'"golden gate" or --token " the", and got {len(plain[1:]) + len(ways)}; see sae-dist find --help'
        )
    how: dict[str, Any] = {"text": plain[1]} if len(plain) > 1 else _way(ways[0], given[ways[0]])
    how["top"] = _count("--top", given.get("--top", "20"))
    if "--tokens" in given:
        how["tokens"] = _count("--tokens", given["--tokens"])
    if {"--exact", "--quick"} <= flags:
        raise ConfigError("--exact and --quick contradict each other; give one")
    if flags & {"--exact", "--quick"}:
        how["exact"] = "--exact" in flags
    return Asked(plain[0], how, "--json" in flags, given.get("--model"))


def _way(key: str, value: str) -> dict[str, Any]:
    """Return what an option other than a text asks for.

    Raises:
        ConfigError: its value is wrong.
    """
    name = key.removeprefix("--")
    if key == "--token":
        found: Any = _latent(value.removeprefix("id:"), key) if value.startswith("id:") else value
    elif key == "--together":
        found = [_latent(each, key) for each in value.split(",")]
    elif key == "--direction":
        latent = value.startswith(LATENT)
        found = _latent(value.removeprefix(LATENT), key) if latent else Path(value)
    else:
        found = value
    return {name: found}


def _latent(value: str, key: str) -> int:
    if not value.strip().isdecimal() or len(value) > 12:
        raise ConfigError(f"{value[:40]}: a number, such as 123, must follow {key}")
    return int(value)


def _count(key: str, value: str) -> int:
    from sae_dist.config.counts import parse_count

    found = parse_count(value, key)
    if not isinstance(found, int) or found < 1:
        raise ConfigError(f"{key} {value}: give a number, at least 1")
    return found
