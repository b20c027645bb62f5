"""The prompts of a study: from a file, or the beginnings of held-out texts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_dist.core.errors import ConfigError
from sae_dist.core.parsing import parse_json, read_bounded, reading

if TYPE_CHECKING:
    from sae_dist.interpret.dictionary import Dictionary
    from sae_dist.interpret.model import LanguageModel

DEFAULT_PROMPTS, DEFAULT_TOKENS = 64, 16
"""How many beginnings of held-out texts, of how many tokens each."""
KEYS = ("prompt", "target", "against")


@dataclass(frozen=True)
class Asking:
    """A prompt of a file, with what should follow it.

    Attributes:
        where: the file and the line.
    """

    text: str
    target: str | None
    against: str | None
    where: str


@dataclass(frozen=True)
class Prompt:
    """A prompt as a model reads it.

    Attributes:
        ids: its tokens, with the special ones before it.
        target: the tokens whose log-probability counts; empty: none do.
        against: the tokens whose log-probability is taken away from that.
    """

    text: str
    ids: tuple[int, ...]
    target: tuple[int, ...] = ()
    against: tuple[int, ...] = ()


def read_prompts(path: Path, target: str | None, against: str | None) -> list[Asking]:
    """Read prompts, one a line; of a .jsonl file objects with `prompt` and maybe `target` and `against`.

    Args:
        target: of the prompts that name none.
        against: of the prompts that name none.

    Raises:
        ConfigError: the file cannot be read, a line is not what it should be, or there is no prompt.
    """
    with reading(f"--prompts {path}", "cannot be read ({reason}); give a text file"):
        text = read_bounded(path, pipes=True).decode("utf-8-sig")
    lines = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
    read = _json_line if path.suffix == ".jsonl" else _plain_line
    found = [read(line, f"{path} line {number}", target, against) for number, line in lines]
    if not found:
        raise ConfigError(f"--prompts {path} is empty; write one prompt a line")
    without = [each for each in found if each.target is None]
    if without and len(without) < len(found):
        raise ConfigError(f"{without[0].where} has no target, other lines have one; add it, or give --target")
    if any(each.against is not None and each.target is None for each in found):
        raise ConfigError("against without a target says nothing; give --target as well")
    return found


def _plain_line(line: str, where: str, target: str | None, against: str | None) -> Asking:
    return Asking(line, target, against, where)


def _json_line(line: str, where: str, target: str | None, against: str | None) -> Asking:
    with reading(where, 'is not JSON ({reason}); write {"prompt": "..."}'):
        found = parse_json(line)
    if not isinstance(found, dict) or not isinstance(found.get("prompt"), str) or not found["prompt"]:
        raise ConfigError(f'{where} has no text "prompt"; write {{"prompt": "..."}}')
    for key, value in found.items():
        if key not in KEYS:
            raise ConfigError(f"{where} has a key {key!r}; the keys are {', '.join(KEYS)}")
        if not isinstance(value, str):
            raise ConfigError(f"{where}: {key} must be a text")
    return Asking(found["prompt"], found.get("target", target), found.get("against", against), where)


def tokenised(lm: "LanguageModel", asked: Sequence[Asking], more: int) -> list[Prompt]:
    """Return the prompts as token ids.

    Args:
        more: how many tokens follow a prompt.

    Raises:
        ConfigError: the model has no tokenizer; a target has no tokens; or a prompt and what follows it are
            longer than the model's context.
    """
    limit = _limit(lm)
    found = []
    for each in asked:
        ids = prompt_ids(lm, each.text)
        target = following_ids(lm, each.text, ids, each.target, f"{each.where}: target")
        against = following_ids(lm, each.text, ids, each.against, f"{each.where}: against")
        longest = len(ids) + max(more, len(target), len(against))
        if not ids:
            raise ConfigError(f"{each.where} has no tokens; write a text")
        if limit is not None and longest > limit:
            raise ConfigError(
                f"{each.where} has {len(ids)} tokens and {longest - len(ids)} follow; {lm.name} reads "
                f"{limit}: shorten it"
            )
        found.append(Prompt(each.text, ids, target, against))
    return found


def default_prompts(
    dictionary: "Dictionary", lm: "LanguageModel", target: str | None, against: str | None, more: int
) -> list[Prompt]:
    """Return the beginnings of held-out texts of the run, or of Python's own text: always the same ones.

    Raises:
        ConfigError: the model is not one that was loaded by its name, the text is not on this machine, or a
            target has no tokens.
    """
    taken: list[Prompt] = []
    for ids in _held_out(dictionary, lm):
        begin = tuple(ids[: len(lm.prefix) + DEFAULT_TOKENS])
        text = lm.tokenizer.decode(list(begin[len(lm.prefix) :]))
        if not text.strip() or any(each.ids == begin for each in taken):
            continue
        wanted = following_ids(lm, text, begin, target, "--target")
        other = following_ids(lm, text, begin, against, "--against")
        limit = _limit(lm)
        if limit is not None and len(begin) + max(more, len(wanted), len(other)) > limit:
            raise ConfigError(f"--tokens {more}: {lm.name} reads {limit} tokens, prompts have {len(begin)}")
        taken.append(Prompt(text, begin, wanted, other))
        if len(taken) == DEFAULT_PROMPTS:
            return taken
    if not taken:
        raise ConfigError("the held-out text has no document that is long enough; give --prompts")
    return taken


def held_out_texts(dictionary: "Dictionary", lm: "LanguageModel", tokens: int) -> list[list[int]]:
    """Return held-out texts of the run, or of Python's own text, as token ids: `tokens` in all, or fewer.

    Raises:
        ConfigError: the model is not one that was loaded by its name, or the text is not on this machine.
    """
    found: list[list[int]] = []
    for ids in _held_out(dictionary, lm):
        found.append(ids)
        tokens -= len(ids)
        if tokens <= 0:
            break
    return found


def _held_out(dictionary: "Dictionary", lm: "LanguageModel") -> Iterator[list[int]]:
    """Yield the tokens of held-out documents that are long enough."""
    from sae_dist.config.sections import TokensConfig
    from sae_dist.tokens.source import held_out_tokens

    if lm.facts is None:
        raise ConfigError("a model that was not loaded by its name has no default prompts; give --prompts")
    run = dictionary.place.run
    tokens = run.tokens if run is not None and run.has_llm else TokensConfig(kind="text", context=128)
    for chunk in held_out_tokens(tokens, lm.facts, seed=0, rows=256).open(0, None):
        for ids_S, segment_S in zip(chunk.ids_NS, chunk.segment_NS, strict=True):
            for segment in range(1, int(segment_S.max()) + 1):
                ids = ids_S[segment_S == segment].tolist()
                if len(ids) >= len(lm.prefix) + DEFAULT_TOKENS:
                    yield ids


def prompt_ids(lm: "LanguageModel", text: str) -> tuple[int, ...]:
    """Return the tokens of a prompt; special tokens that end a text would end the generation."""
    ids = lm.ids(text).tolist()
    return tuple(ids[: len(ids) - len(lm.suffix)])


def following_ids(
    lm: "LanguageModel", text: str, ids: tuple[int, ...], following: str | None, where: str
) -> tuple[int, ...]:
    """Return the tokens of what follows a prompt, cut as they are behind it where the prompt's stay alike."""
    from sae_dist.tokens.encoder import without_surrogates

    if following is None:
        return ()
    whole = prompt_ids(lm, text + following)
    alone = tuple(lm.tokenizer(without_surrogates(following), add_special_tokens=False)["input_ids"])
    found = whole[len(ids) :] if whole[: len(ids)] == ids else alone
    if not found:
        raise ConfigError(f"{where} {following!r} has no tokens; give a text, maybe with a space before it")
    return found


def _limit(lm: "LanguageModel") -> int | None:
    from sae_dist.llm.architecture import text_part

    found: Any = getattr(text_part(lm.model.config), "max_position_embeddings", None)
    return int(found) if isinstance(found, int) and found > 0 else None
