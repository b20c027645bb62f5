"""The command `sae-dist attribute`: the codes of a prompt by what they do to the token after it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.commands.arguments import options_of, without
from sae_dist.config.trust import REMOTE_CODE, granted_by
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show
from sae_dist.export.names import FILES
from sae_dist.interpret.study.asked import whole_number
from sae_dist.interpret.study.prompts import Asking, read_prompts

if TYPE_CHECKING:
    from sae_dist.interpret.attribute.metrics import Metric

VALUES = ("--target", "--against", "--exact", "--prompts", "--seed", "--html", "--model", "--format")


def help_text() -> str:
    """Return the help text."""
    return """\
Ranks the codes of a prompt, a latent at a token each, by what they do to the token after it: to its logit
minus that of another, or minus the mean logit. Gradient times code at the prompt as it is ranks them; those
that are shown are removed for real. Printed with it: what latents and error carry of the logit, and to what
distance these parts add up; gradients beside finite differences; how well gradients predict removals; and
what removing codes of latents as frequent, and random directions of the same size, does. docs/circuits.md
explains these numbers. RUN is a run with an export, an export, or a folder of another library's files (or one
on the Hub, as organisation/name).

  --target TEXT     the token after the prompt, such as " Paris", or id:123 (the model's own first choice
                    against its second)
  --against TEXT    minus the logit of this one (minus the mean logit)
  --exact N         how many codes are shown and removed for real (50)
  --prompts FILE    many prompts in place of one, one a line, or .jsonl with "prompt" and maybe "target" and
                    "against": latents by their mean effect, with intervals over prompts
  --seed N          of controls and resampling (0)
  --json            print everything as JSON
  --html FILE       write a page as well, of one prompt: no scripts, nothing fetched
  --model NAME      a model's name or folder, where the dictionary does not say its own
  --format F        of another library's files, where several are in the folder
  llm.trust_remote_code=true    run the code that the model brings along

Examples:
  sae-dist attribute outputs/my_run "The capital of France is" --target " Paris" --against " Rome"
  sae-dist attribute outputs/my_run --prompts prompts.jsonl --exact 100 --json
"""


@dataclass(frozen=True)
class Asked:
    """The arguments of the command."""

    where: str
    text: str | None
    prompts: tuple[Asking, ...]
    target: str | None
    against: str | None
    exact: int
    seed: int
    as_json: bool
    html: Path | None
    model: str | None
    format: str | None


def run(arguments: list[str]) -> None:
    """Rank what the token after a prompt, or after many, rests on, and print it.

    Raises:
        ConfigError: an argument is wrong, or does not fit the dictionary, the model or a file.
    """
    arguments, granted = granted_by(arguments)
    asked = parsed(arguments)
    import torch

    from sae_dist.interpret.load import load
    from sae_dist.interpret.model import model

    d = load(asked.where, format=asked.format)
    grant = granted.get(REMOTE_CODE, False)
    lm = model(d, asked.model, dtype=torch.float32, trust_remote_code=grant)
    # A model that was named here is meant, whatever the dictionary calls its own.
    how: dict[str, Any] = {"exact": asked.exact, "seed": asked.seed, "force": asked.model is not None}
    if asked.text is None:
        from sae_dist.interpret.attribute.many import attribute_many

        prompts = [(each.text, _metric(each.target, each.against)) for each in asked.prompts]
        many = attribute_many(d, lm, prompts, names=[each.where for each in asked.prompts], **how)
        show(many.to_json() if asked.as_json else many)
        return
    found = d.attribute(lm, asked.text, metric=_metric(asked.target, asked.against), **how)
    if asked.html is not None:
        from sae_dist.core.files import write_text

        write_text(asked.html, found.to_html())
    show(found.to_json() if asked.as_json else found)


def _metric(target: str | None, against: str | None) -> "Metric | None":
    from sae_dist.interpret.attribute.metrics import Metric, named

    return None if target is None else Metric(named(target), named(against))


def parsed(arguments: Sequence[str]) -> Asked:
    """Return the arguments once they are known to be right.

    Raises:
        ConfigError: one is unknown, or has no value, or one is missing, or the prompts cannot be read.
    """
    rest, as_json = without(list(arguments), "--json")
    given, plain = options_of(rest, "attribute", VALUES)
    path = Path(given["--prompts"]) if "--prompts" in given else None
    if path is not None and len(plain) == 2:
        raise ConfigError(f"--prompts {path} takes the place of the prompt {plain[1]!r}; give one of them")
    if len(plain) != (2 if path is None else 1):
        raise ConfigError(
            "sae-dist attribute needs a dictionary and one prompt in quotes, such as outputs/my_run "
            f'"The capital of France is", or a dictionary and --prompts FILE, and got {len(plain)}; see '
            "sae-dist attribute --help"
        )
    target, against = given.get("--target"), given.get("--against")
    if against is not None and target is None and path is None:
        raise ConfigError(f"--against {against} needs --target")
    if path is None and not plain[1]:
        raise ConfigError("the prompt is empty; give a text with at least one token")
    if given.get("--format", "saelens") not in FILES:
        raise ConfigError(f"--format {given['--format']} is unknown; the formats are {', '.join(FILES)}")
    html = Path(given["--html"]) if "--html" in given else None
    if html is not None and path is not None:
        raise ConfigError(f"--html {html} is of one prompt; with --prompts, give --json")
    if html is not None and (html.is_dir() or not html.absolute().parent.is_dir()):
        raise ConfigError(f"--html {html}: give a file in a folder that exists")
    return Asked(
        where=plain[0],
        text=plain[1] if path is None else None,
        prompts=() if path is None else tuple(read_prompts(path, target, against)),
        target=target,
        against=against,
        exact=whole_number(given.get("--exact", "50"), "--exact", 0, 100_000),
        seed=whole_number(given.get("--seed", "0"), "--seed", 0, 2**31 - 1),
        as_json=as_json,
        html=html,
        model=given.get("--model"),
        format=given.get("--format"),
    )
