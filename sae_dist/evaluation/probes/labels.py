"""Small labelled sets for probing: tokens of Python's own sources, or a user's texts.

python  The class that Python's tokenizer gives each token of the standard library's held-out files: comment,
        string, keyword, number, operator, definition (the name after def or class), nested (in a line
        indented by 8 or more). A token of the LLM is labelled by its last character. One file in four is the
        test part.
.jsonl  Lines with a `text` and a `label`; every label is a question of its own, against all others. The row
        is that of the last token that fits the context, as in sae-probes. One text in four, by a hash of it,
        is the test part.

Letters: as core.types; N labelled tokens or texts.
"""

import hashlib
import io
import keyword
import tokenize
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import parse_json, read_bounded, reading
from sae_dist.evaluation.asked import labelled_file
from sae_dist.evaluation.probes.probing import Task
from sae_dist.evaluation.probes.rows_at import Passage
from sae_dist.tokens.documents import held_out, python_sources
from sae_dist.tokens.encoder import Encoder

CLASSES = ("comment", "string", "keyword", "number", "operator", "definition", "nested")
NESTED = 8
TEST_ONE_IN = 4
PER_CLASS = 1000
"""The most tokens, or texts, of yes in a part of a question, and of no."""
PYTHON_BYTES = 60_000
PYTHON_TOKENS = 60_000
WINDOWS = 8
"""The most context-sized pieces read from one file: many files rather than long ones."""
MOST_LABELS = 20


def hashed(text: str) -> int:
    """Return a hash of a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def classes_of(source: str) -> np.ndarray:
    """Mark which classes each character of a Python source belongs to: [characters, classes].

    Raises:
        SyntaxError, tokenize.TokenError: the source is not valid Python.
    """
    lines = list(io.StringIO(source))
    starts = np.concatenate([[0], np.cumsum([len(line) for line in lines])])
    found = np.zeros((len(source), len(CLASSES)), bool)
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        name = tokenize.tok_name[token.exact_type if token.type == tokenize.OP else token.type]
        kind = _kind(token.type, name, token.string, before)
        if kind is not None:
            first = starts[token.start[0] - 1] + token.start[1]
            last = starts[token.end[0] - 1] + token.end[1]
            found[first:last, CLASSES.index(kind)] = True
        before = token.string
    for line, start in zip(lines, starts[:-1], strict=True):
        indent = len(line) - len(line.lstrip(" "))
        if indent >= NESTED and line.strip():
            found[start + indent : start + len(line.rstrip()), CLASSES.index("nested")] = True
    return found


def _kind(number: int, name: str, text: str, before: str) -> str | None:
    if number == tokenize.COMMENT:
        return "comment"
    if number == tokenize.STRING or name.startswith("FSTRING"):
        return "string"
    if number == tokenize.NUMBER:
        return "number"
    if number == tokenize.OP:
        return "operator"
    if number == tokenize.NAME and keyword.iskeyword(text):
        return "keyword"
    return "definition" if number == tokenize.NAME and before in ("def", "class") else None


def python_tasks(encoder: Encoder, room: int, most: int) -> tuple[list[Passage], list[Task]]:
    """Make passages of held-out sources, and a question for each of CLASSES; rows are numbered by passage.

    Args:
        room: tokens of a passage; most: tokens in all, but for the last file's.

    Raises:
        ConfigError: the tokenizer does not report character ranges.
    """
    windows: list[np.ndarray] = []
    labels, train = [], []
    files = [(key, path) for key, path in python_sources() if held_out(key)]
    for key, path in sorted(files, key=lambda each: hashed(each[0])):
        if sum(map(len, windows)) >= most or path.stat().st_size > PYTHON_BYTES:
            continue
        try:
            source = path.read_text(encoding="utf-8")
            of_character = classes_of(source)
        except (SyntaxError, tokenize.TokenError, UnicodeDecodeError):
            continue  # The library has files with errors in them, for its own tests.
        ids, spans = encoder.spans(source)
        spans, ids = spans[spans[:, 1] > spans[:, 0]], ids[spans[:, 1] > spans[:, 0]]
        for first in range(0, min(len(ids), WINDOWS * room), room):
            windows.append(ids[first : first + room])
            labels.append(of_character[spans[first : first + room, 1] - 1])
            train.append(np.full(len(windows[-1]), hashed(key) % TEST_ONE_IN != 0))
    if not windows:
        return [], []
    label, in_train = np.concatenate(labels), np.concatenate(train)
    chosen = {name: balanced(label[:, c], in_train) for c, name in enumerate(CLASSES)}
    used = np.unique(np.concatenate(list(chosen.values())))
    tasks = [
        Task(
            name,
            torch.from_numpy(np.searchsorted(used, rows)),
            torch.from_numpy(label[rows, CLASSES.index(name)]),
            torch.from_numpy(in_train[rows]),
        )
        for name, rows in chosen.items()
    ]
    ends = np.cumsum([len(window) for window in windows])
    bounds = np.searchsorted(used, np.concatenate([[0], ends]))
    passages = [
        Passage(window, used[bounds[i] : bounds[i + 1]] - (ends[i] - len(window)))
        for i, window in enumerate(windows)
        if bounds[i + 1] > bounds[i]
    ]
    return passages, tasks


def balanced(label_N: np.ndarray, train_N: np.ndarray) -> np.ndarray:
    """Choose the rows of a question, ascending: in each part equally many of both, at most PER_CLASS."""
    draw = np.random.Philox(seed=0)
    key_N = draw.random_raw(len(label_N))
    found = []
    for part_N in (train_N, ~train_N):
        sides = [np.flatnonzero(part_N & side_N) for side_N in (label_N, ~label_N)]
        size = min(PER_CLASS, *map(len, sides))
        found += [rows[np.argsort(key_N[rows], kind="stable")[:size]] for rows in sides]
    return np.sort(np.concatenate(found))


def read_labelled(path: str) -> list[tuple[str, str]]:
    """Read texts and labels of a .jsonl file; a repeated text counts once.

    Raises:
        ConfigError: no such file, a line without the fields, fewer than two labels, or more than MOST_LABELS.
    """
    asked, file = f"eval.probes={path}", labelled_file(path)
    found: dict[str, str] = {}
    with reading(asked, "cannot be read: {reason}"):
        lines = read_bounded(file).decode("utf-8-sig").splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
            text, label = entry["text"], entry["label"]
        except (ValueError, KeyError, TypeError):
            text = label = None
        if not isinstance(text, str) or not isinstance(label, str | int) or not text.strip():
            raise ConfigError(
                f'{asked}: line {number} is not an object with a "text" and a "label", such as '
                '{"text": "...", "label": "yes"}'
            )
        found[text] = str(label)
    labels = set(found.values())
    if not 2 <= len(labels) <= MOST_LABELS:
        raise ConfigError(f"{asked} has {len(labels)} labels; give from 2 to {MOST_LABELS}")
    return list(found.items())


def text_tasks(
    labelled: Sequence[tuple[str, str]], ids_of: Callable[[str], np.ndarray], room: int
) -> tuple[list[Passage], list[Task]]:
    """Make a passage for each text, read at its last token, and a question for each label.

    Two labels make one question.
    """
    passages, kept = [], []
    for text, label in labelled:
        ids = ids_of(text)[:room]
        if len(ids):
            passages.append(Passage(ids, np.array([len(ids) - 1])))
            kept.append((text, label))
    train_N = torch.tensor([hashed(text) % TEST_ONE_IN != 0 for text, _ in kept])
    names = sorted({label for _, label in kept})
    tasks = []
    for name in names[1:] if len(names) == 2 else names:
        label_N: Tensor = torch.tensor([label == name for _, label in kept])
        rows = torch.from_numpy(balanced(label_N.numpy(), train_N.numpy()))
        tasks.append(Task(name, rows, label_N[rows], train_N[rows]))
    return passages, tasks
