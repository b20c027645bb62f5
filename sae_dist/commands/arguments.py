"""Arguments that several commands read in the same way."""

import sys
from pathlib import Path

from sae_dist.core.errors import ConfigError


def one_folder(arguments: list[str], command: str, what: str) -> Path:
    """Return the folder that is a command's only argument.

    Args:
        what: what kind of folder, with an example, for the message.

    Raises:
        ConfigError: there is no argument, there are several, or it is an option.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        given = f", not {' '.join(arguments)}" if arguments else ""
        raise ConfigError(f"sae-dist {command} needs {what}{given}; see sae-dist {command} --help")
    return Path(arguments[0])


def without(arguments: list[str], *flags: str) -> tuple[list[str], bool]:
    """Return the arguments that are not in `flags`, and whether any was."""
    rest = [argument for argument in arguments if argument not in flags]
    return rest, len(rest) < len(arguments)


def without_cfg(arguments: list[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--cfg job`, and whether that was among them.

    Raises:
        ConfigError: --cfg is not followed by job.
    """
    if "--cfg" not in arguments:
        return arguments, False
    place = arguments.index("--cfg")
    if arguments[place + 1 : place + 2] != ["job"]:
        raise ConfigError("--cfg must be followed by job: --cfg job prints the configuration")
    return [*arguments[:place], *arguments[place + 2 :]], True


def options_of(
    arguments: list[str], command: str, names: tuple[str, ...]
) -> tuple[dict[str, str], list[str]]:
    """Return the values of options, written `--name value` or `--name=value`, and the other arguments.

    Raises:
        ConfigError: an option has no value, or is none of `names`.
    """
    given: dict[str, str] = {}
    others: list[str] = []
    rest = iter(arguments)
    for each in rest:
        name, equals, value = each.partition("=")
        if name in names:
            given[name] = value if equals else next(rest, "")
            if not given[name]:
                # In this order: what follows --token is hidden in errors, as if it were a secret.
                raise ConfigError(f"see sae-dist {command} --help; a value must follow {name}")
        elif each.startswith("--"):
            raise ConfigError(f"sae-dist {command} has no option {each}; see sae-dist {command} --help")
        else:
            others.append(each)
    return given, others


def text_of(given: str, what: str) -> str:
    """Return a text that is an argument, read from standard input for -.

    Args:
        what: the text's name in messages.

    Raises:
        ConfigError: it is empty, or not UTF-8.
    """
    text = given
    if given == "-":
        try:
            text = sys.stdin.read()
        except UnicodeDecodeError as error:
            raise ConfigError(f"the {what} on standard input is not UTF-8: {error.reason}") from error
    if not text:
        raise ConfigError(f"the {what} is empty; give a text with at least one token")
    return text
