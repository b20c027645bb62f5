"""The command `sae-dist graph`: which latents made a model say something, through which path, and a check."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.commands.arguments import text_of
from sae_dist.config.trust import REMOTE_CODE, granted_by
from sae_dist.core.errors import ConfigError, SaeDistError, Told
from sae_dist.core.place import launched, place
from sae_dist.core.text import show
from sae_dist.graph.asked import Asked
from sae_dist.launch.arguments import Parser

if TYPE_CHECKING:
    from sae_dist.graph.draw import Drawn

NUMBERS = {
    "nodes": ("2000", 1, 1_000_000),
    "batch": ("64", 1, 4096),
    "check": ("20", 1, 1000),
    "paths": ("10", 0, 1000),
    "seed": ("0", 0, 2**31 - 1),
}
"""Options with a number: the default, the least and the most."""
SHARES = {"node-threshold": "0.8", "edge-threshold": "0.98"}
OPTION_OF = {"targets": "--target", "llm.name=": "--model "}
"""The beginning of messages about values that options of this command set."""


def help_text() -> str:
    """Return the help text."""
    return """\
Draws the attribution graph of what a model says after a prompt: latents of transcoders, errors and tokens,
and what each adds to others and to the logits. Then latents and paths are cut in the real model, and the
verdict says whether it does what the graph says. SET is a grid of transcoders, or a folder of runs, exports,
or of another library's files.

Writes FOLDER/graph.html, a page to look at; graph.json and graph.safetensors, which Python reads;
neuronpedia.json, which neuronpedia.org reads; check.json. Prints the verdict. A node's name is
f_LAYER_POSITION_LATENT, an error's e_LAYER_POSITION, a token's t_POSITION, a logit's l_TOKEN.

  --target TEXT        the token that is explained, or id:N (the most likely ones)
  --against TEXT       effects are of the target's logit minus that of this token (minus the mean logit)
  --nodes N            how many latents are followed back (2000)
  --node-threshold P   the share of influence that nodes keep (.8); --edge-threshold P: that edges keep (.98)
  --batch N            how many targets are computed at once (64)
  --check N            how many latents are cut (20); --paths N: how many paths (10)
  --no-check           draw only
  --paraphrases FILE   other prompts that say the same, one a line (the prompt with something before it)
  --other SET          transcoders of another training, such as another seed, in which latents are looked for
  --out FOLDER         where to write (SET/graphs/NAME, NAME by the prompt)
  --model NAME         another model than the set's own
  --device cuda        where to compute (cpu)
  --seed N             of controls and resampling (0)
  --force              write over an earlier graph
  llm.trust_remote_code=true    run the code that the model brings along
  --json               print JSON

Inside torchrun or a Slurm step the ranks share the work. A trace that was stopped goes on where it was.

Examples:
  sae-dist graph outputs/transcoders "The capital of France is"
  sae-dist graph outputs/transcoders "The capital of France is" --target " Paris" --against " Rome"
  torchrun --nproc-per-node 4 --no-python sae-dist graph outputs/transcoders "The capital of France is"
"""


def run(arguments: list[str]) -> None:
    """Draw a graph, check it, print the verdict and where the page is.

    Raises:
        SaeDistError: an option is not valid, or does not fit the set, the model or a file; or a rank is gone.
    """
    rest, as_json = [each for each in arguments if each != "--json"], "--json" in arguments
    try:
        asked = asked_of(rest)
        from sae_dist.graph.draw import draw

        drawn = draw(asked)
    except SaeDistError as error:
        if isinstance(error, Told):
            raise
        if launched() and place().rank:
            raise _silently(error) from error
        if (named := _of_options(error)) is not None:
            raise named from error
        raise
    if drawn is None:
        return
    show(json.dumps(summary(drawn), indent=1) if as_json else words(drawn))


def _of_options(error: SaeDistError) -> ConfigError | None:
    """Return an error that names the option of this command in place of what it set; None: none set it."""
    for key, option in OPTION_OF.items():
        if isinstance(error, ConfigError) and str(error).startswith(key):
            return ConfigError(option + str(error)[len(key) :])
    return None


def asked_of(arguments: list[str]) -> Asked:
    """Read the options.

    Raises:
        ConfigError: one is not valid.
    """
    parser = Parser(prog="sae-dist graph", add_help=False, allow_abbrev=False)
    parser.add_argument("set")
    parser.add_argument("prompt")
    for option in ("--target", "--against", "--paraphrases", "--other", "--out", "--model"):
        parser.add_argument(option)
    for name, (default, _least, _most) in NUMBERS.items():
        parser.add_argument(f"--{name}", default=default)
    for name, default in SHARES.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--device", default="cpu")
    for flag in ("--no-check", "--force"):
        parser.add_argument(flag, action="store_true")
    rest, granted = granted_by(arguments)
    given = vars(parser.parse_args(rest))
    number = {name: _whole(given[name], name) for name in NUMBERS}
    if given["against"] is not None and given["target"] is None:
        raise ConfigError("--against needs --target")
    if given["device"] not in ("cpu", "cuda"):
        raise ConfigError(f"--device {given['device']}: give cpu or cuda")
    targets = tuple(_token(given[key], key) for key in ("target", "against") if given[key] is not None)
    return Asked(
        where=given["set"],
        prompt=text_of(given["prompt"], "prompt"),
        targets=targets,
        against=given["against"] is not None,
        checked=0 if given["no_check"] else number["check"],
        paths=number["paths"],
        paraphrases=_path(given["paraphrases"]),
        other=given["other"],
        out=_path(given["out"]),
        model=given["model"],
        device=given["device"],
        seed=number["seed"],
        force=given["force"],
        trust_remote_code=granted.get(REMOTE_CODE, False),
        settings={
            "max_nodes": number["nodes"],
            "batch": number["batch"],
            "node_threshold": _share(given["node_threshold"], "node-threshold"),
            "edge_threshold": _share(given["edge_threshold"], "edge-threshold"),
        },
    )


def words(drawn: "Drawn") -> str:
    """Return what is printed of a graph: the verdict first."""
    verdict = drawn.verdict
    said = [f"{drawn.graph!r}", "Not checked: it may be wrong about the model."] if verdict is None else []
    if verdict is not None:
        said = [*verdict.lines[:1], f"{drawn.graph!r}", *verdict.lines[1:]]
        said += [f"\n{table}" for table in verdict.tables] + [""]
    return "\n".join([*said, str(drawn.files[0])])


def summary(drawn: "Drawn") -> dict[str, Any]:
    """Return what `--json` prints."""
    graph = drawn.graph
    logits = [
        {"token": node.token, "text": text, "probability": node.probability}
        for node, text in zip(graph.logits, graph.targets, strict=True)
    ]
    return {
        "prompt": graph.prompt,
        "model": graph.model,
        "logits": logits,
        "nodes": len(graph.nodes),
        "links": len(graph.weights),
        "error_share": graph.error_share,
        "replacement_score": graph.replacement_score,
        "completeness": graph.completeness,
        "verdict": None if drawn.verdict is None else drawn.verdict.to_json(),
        "files": [str(each) for each in drawn.files],
    }


def _silently(error: SaeDistError) -> Told:
    """Return the error of a rank whose first rank prints the same."""
    found = Told(str(error))
    found.exit_code = error.exit_code
    return found


def _whole(text: str, name: str) -> int:
    _default, least, most = NUMBERS[name]
    if not text.isdecimal() or not least <= int(text) <= most:
        raise ConfigError(f"--{name} {text}: give a whole number from {least} to {most}")
    return int(text)


def _share(text: str, name: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise ConfigError(f"--{name} {text}: give a share above 0 and up to 1")
    return found


def _token(text: str, name: str) -> str | int:
    number = text.removeprefix("id:")
    if number == text:
        return text
    if not number.isdecimal():
        raise ConfigError(f"--{name} {text}: give the text of one token, or id: and its number")
    return int(number)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
