"""The table of commands, and how one is found, explained and run."""

import difflib
import importlib
import sys
from dataclasses import dataclass
from importlib import metadata

from sae_dist.commands.failures import DISK, cannot_write, say
from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.text import print_line, show

HELP = ("--help", "-h")


@dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        module: its file in this folder, imported when it is called, with `run(arguments)` and `help_text()`.
        arguments: what follows its name, in short.
        summary: what it does, in a line; empty: sae-dist calls it itself, and no help names it.
        keys: it accepts keys of a run; `--help KEY` explains one.
        nested: it has commands of its own, which explain themselves.
    """

    module: str
    arguments: str
    summary: str
    keys: bool = False
    nested: bool = False


COMMANDS = {
    "train": Command("train", "[key=value ...]", "train, export and evaluate a dictionary", keys=True),
    "harvest": Command("harvest", "[key=value ...]", "store activations to train from", keys=True),
    "submit": Command("submit", "[key=value ...]", "train as a Slurm job", keys=True),
    "resume": Command("resume", "RUN", "continue an unfinished run"),
    "eval": Command("evaluate", "RUN [eval.key=value ...]", "evaluate a run's dictionary", keys=True),
    "report": Command("report", "FOLDER", "write an HTML page of a run, a grid or a sweep"),
    "explain": Command("explain", 'RUN "text"', "show which latents fire on a text"),
    "steer": Command("steer", "RUN --clamp LATENT=DOSE ...", "measure what changing a latent does"),
    "attribute": Command(
        "attribute", 'RUN "prompt"', "rank a prompt's codes by what they do to the next token"
    ),
    "ablate": Command("ablate", "RUN [--prompts FILE]", "rank latents by what removing them does"),
    "graph": Command("graph", 'SET "prompt"', "draw which latents made a model say it, and check"),
    "atlas": Command("atlas", "RUN [atlas.tokens=10M ...]", "index what every latent fires on"),
    "find": Command("find", 'RUN "text"', "find latents in a run's atlas"),
    "serve": Command("serve", "RUN [--port N]", "show the atlas of a run as pages to look at"),
    "sweep-table": Command("sweep_table", "FOLDER", "print and draw the results of the runs in a folder"),
    "export": Command("export", "RUN", "export a run's newest checkpoint for other libraries"),
    "import": Command("import_", "FOLDER name=...", "make a run of a dictionary from elsewhere", keys=True),
    "dashboard": Command("dashboard", "PROJECT", "make a W&B view with the panels to watch"),
    "check": Command("check", "[--device cuda]", "check the stream between two processes, and its speed"),
    "bench": Command("bench", "COMMAND ...", "compare with other trainers on this machine", nested=True),
    "rank": Command("rank", "", ""),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code. Only unexpected errors leave a traceback."""
    try:
        dispatch(sys.argv[1:] if arguments is None else arguments)
        return 0
    except SaeDistError as error:
        say(error)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK:
            raise
        say(cannot_write(error))
        return SaeDistError.exit_code
    except KeyboardInterrupt:
        print_line("sae-dist: interrupted")
        return 1


def dispatch(arguments: list[str]) -> None:
    """Explain or run the command that the first argument names.

    Raises:
        ConfigError: there is no such command.
        SaeDistError: see `core.errors`.
    """
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in (*HELP, "help"):
        show(overview(), end="")
        return
    if name == "--version":
        show(version())
        return
    if name not in COMMANDS:
        begun = [each for each in shown() if name.startswith(each)]  # evaluate, exports
        near = begun or difflib.get_close_matches(name, shown(), n=1)
        hint = f"nearest: {near[0]}" if near else "sae-dist --help lists the commands"
        raise ConfigError(f"there is no command {name}; {hint}")
    command = COMMANDS[name]
    if command.keys and rest[:1] == ["--help"] and len(rest) == 2:
        from sae_dist.commands.keys import explain

        show(explain(rest[1]))
    elif command.summary and set(HELP) & set(rest[:1] if command.nested else rest):
        show(explained(name), end="")
    else:
        importlib.import_module(f"sae_dist.commands.{command.module}").run(rest)


def shown() -> dict[str, str]:
    """Return `train [key=value ...]` and the like, by name, of the commands for a person."""
    return {name: f"{name} {each.arguments}" for name, each in COMMANDS.items() if each.summary}


def overview() -> str:
    """Return what `sae-dist --help` prints."""
    usages = shown()
    width = max(map(len, usages.values()))
    lines = [f"  sae-dist {usage:<{width}}  {COMMANDS[name].summary}" for name, usage in usages.items()]
    return "\n".join(
        [
            "sae-dist: sparse autoencoders on the activations of language models",
            "",
            *lines,
            "",
            "sae-dist COMMAND --help explains a command; sae-dist --version prints the version.",
            "",
            "Exit codes: 0 done; 2 the input is wrong, one line says what; 75 stopped as asked, resumable;",
            "1 anything else.",
            "",
        ]
    )


def explained(name: str) -> str:
    """Return what `sae-dist NAME --help` prints."""
    command = COMMANDS[name]
    text = importlib.import_module(f"sae_dist.commands.{command.module}").help_text()
    return f"sae-dist {shown()[name]}    {command.summary}\n\n{text}"


def version() -> str:
    """Return the installed version."""
    try:
        return metadata.version("sae-dist")
    except metadata.PackageNotFoundError:
        return "not installed"
