"""Explanations of keys and options, read from the comments of their classes and files, for `--help`."""

import ast
import dataclasses
import difflib
import inspect
import io
import textwrap
import tokenize
import typing
from typing import Any

from sae_dist.config.run import RunConfig
from sae_dist.core.errors import ConfigError
from sae_dist.launch.options import option_files

WIDTH, COLUMN = 110, 44
ALL = "all"


def groups_in_words() -> str:
    """Return every group with its options, and the comment that an option's file begins with."""
    found = []
    for group, options in option_files().items():
        found.append(f"  {group}={'|'.join(options)}")
        for option, file in options.items():
            lines = file.read_text(encoding="utf-8").splitlines()[:2]
            said = [line.lstrip("# ") for line in lines if line.startswith("# ") and "@package" not in line]
            if said:
                text = f"    {option}: {said[0]}"
                found += textwrap.wrap(text, WIDTH, subsequent_indent=" " * 6)
    return "\n".join(found)


def explain(word: str) -> str:
    """Return the lines of one key, of a section's keys, or of all keys.

    Raises:
        ConfigError: there is no such key or section.
    """
    lines = meanings()
    chosen = [key for key in lines if word in (ALL, key) or key.startswith(f"{word}.")]
    if not chosen:
        sections = sorted({key.rpartition(".")[0] for key in lines} - {""})
        near = difflib.get_close_matches(word, [*lines, *sections], n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else f"sections: {', '.join(sections)}"
        raise ConfigError(f"--help {word} names no key and no section; {hint}; --help all prints every key")
    return "\n".join(lines[key] for key in chosen)


def meanings(node: type = RunConfig, prefix: str = "") -> dict[str, str]:
    """Return the line `key=default  meaning` of every key below a section, wrapped."""
    found: dict[str, str] = {}
    said, hints = comments(node), typing.get_type_hints(node)
    for item in dataclasses.fields(node):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            found |= meanings(typing.cast(type, kind), f"{prefix}{item.name}.")
        else:
            found[prefix + item.name] = _entry(f"{prefix}{item.name}={_default(item)}", said[item.name])
    return found


def comments(node: type) -> dict[str, str]:
    """Return the comment beside each field of a dataclass, or on the lines above it."""
    source = textwrap.dedent(inspect.getsource(node))
    at_line = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found, after = {}, body.lineno
    for part in body.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            lines = range(after + 1, (part.end_lineno or part.lineno) + 1)
            found[part.target.id] = " ".join(at_line[line] for line in lines if line in at_line)
        after = part.end_lineno or part.lineno
    return found


def _default(item: "dataclasses.Field[Any]") -> str:
    made = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
    if isinstance(made, bool):
        return str(made).lower()
    if isinstance(made, list):
        return f"[{','.join(map(str, made))}]"
    # MISSING of OmegaConf: the group's option sets it.
    return {"None": "null", "???": "..."}.get(str(made), str(made))


def _entry(text: str, meaning: str) -> str:
    lines = textwrap.wrap(meaning, WIDTH - COLUMN) or [""]
    first = (
        [f"  {text:<{COLUMN - 3}} {lines[0]}"]
        if len(text) < COLUMN - 2
        else [f"  {text}", " " * COLUMN + lines[0]]
    )
    return "\n".join(line.rstrip() for line in [*first, *(" " * COLUMN + line for line in lines[1:])])
