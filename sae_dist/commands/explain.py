"""The command `sae-dist explain`: which latents fired on a text."""

from dataclasses import dataclass
from pathlib import Path

from sae_dist.commands.arguments import options_of, text_of, without
from sae_dist.config.trust import REMOTE_CODE, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show
from sae_dist.export.names import FILES

VALUES = ("--top", "--html", "--model", "--format")


def help_text() -> str:
    """Return the help text."""
    return """\
Prints which latents of a dictionary fire on a text: for each token the most noteworthy with their codes, and
what is not explained; for the text its latents by code times surprise, with how often each fires on it, its
rate elsewhere, lift and p-value, its direct effect on the logits of the next tokens, and where it is
strongest. docs/python.md explains these words.

RUN is a run with an export, an export, or a folder of another library's files (or one on the Hub, as
organisation/name). The text - is read from standard input.

  --top N         show so many latents (20)
  --json          print everything as JSON
  --html FILE     write a page as well: no scripts, nothing fetched
  --model NAME    a model's name or folder, where the dictionary does not say its own
  --format F      of another library's files, where several are in the folder
  llm.trust_remote_code=true    run the code that the model brings along

Examples:
  sae-dist explain outputs/my_run "The capital of France is Paris."
  sae-dist explain outputs/my_run - --html page.html < letter.txt
"""


@dataclass(frozen=True)
class Asked:
    """The arguments of the command."""

    where: str
    text: str
    top: int
    as_json: bool
    html: Path | None
    model: str | None
    format: str | None


def run(arguments: list[str]) -> None:
    """Explain a text and print what was found.

    Raises:
        ConfigError: an argument is wrong, there is no such dictionary or model, or the text has no token.
    """
    arguments, granted = granted_by(arguments)
    asked = parsed(arguments)
    from sae_dist.interpret.load import load
    from sae_dist.interpret.model import model

    d = load(asked.where, format=asked.format)
    lm = model(d, asked.model, trust_remote_code=granted.get(REMOTE_CODE, False))
    # A model that was named here is meant, whatever the dictionary calls its own.
    found = d.explain(lm, asked.text, top=asked.top, force=asked.model is not None)
    if asked.html is not None:
        from sae_dist.core.files import write_text

        write_text(asked.html, found.to_html())
    show(found.to_json() if asked.as_json else found)


def parsed(arguments: list[str]) -> Asked:
    """Return the arguments once they are known to be right.

    Raises:
        ConfigError: one is unknown, or has no value, or one is missing.
    """
    rest, as_json = without(arguments, "--json")
    given, plain = options_of(rest, "explain", VALUES)
    if len(plain) != 2:
        raise ConfigError(
            f'sae-dist explain needs a dictionary and one text in quotes, such as outputs/my_run "The text", '
            f"and got {len(plain)}; see sae-dist explain --help"
        )
    top = given.get("--top", "20")
    if not top.isdecimal() or int(top) < 1:
        raise ConfigError(f"--top {top}: give the number of latents to show, at least 1")
    if given.get("--format", "saelens") not in FILES:
        raise ConfigError(f"--format {given['--format']} is unknown; the formats are {', '.join(FILES)}")
    html = Path(given["--html"]) if "--html" in given else None
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise ConfigError(f"--html {html}: give a file in a folder that exists")
    return Asked(
        plain[0],
        text_of(plain[1], "text"),
        int(top),
        as_json,
        html,
        given.get("--model"),
        given.get("--format"),
    )
