"""Documents of Hugging Face datasets, streamed, or downloaded and read by number."""

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.hub import UNREACHABLE, hub_answers, is_offline
from sae_dist.core.text import first_line, print_line
from sae_dist.core.types import LlmFacts
from sae_dist.tokens.column import Column
from sae_dist.tokens.documents import HELD_OUT_ONE_IN
from sae_dist.tokens.hf_files import culprit, is_saved
from sae_dist.tokens.hf_places import check_addresses, check_confined, check_saved
from sae_dist.tokens.indexed import IndexedDocuments, lowest_hashes, random_keys
from sae_dist.tokens.kept import DocumentTokens, ForeignIds, UnusableDocument

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHUFFLE_BUFFER = 64
EXAMPLES_LOOKED_AT = 64
LOADERS = ("json", "csv", "parquet", "arrow", "text", "webdataset", "xml")
"""Loaders of the library that read text and tables."""
RUNNING = ("pandas", "sql", "iceberg", "spark", "generator", "cache")
"""Others, which unpickle (before version 5), or run what a file or an address says."""


class MappedCorpus:
    """A downloaded dataset, whose examples are read by number."""

    def __init__(self, dataset: "Dataset", column: Column):
        self.field, self.dataset, self.column = column.field, dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def held_out(self) -> np.ndarray:
        """Return a mask [examples] of those held out for evaluation, chosen by a hash of their numbers."""
        return lowest_hashes(random_keys(0, 0, len(self.dataset)))

    def read(self, number: int) -> DocumentTokens:
        """Return the tokens of one example."""
        return self.column.read(self.dataset[number])

    def where(self, number: int) -> str:
        """Name an example for a person."""
        return f"{self.field}, example {number}"


class StreamedDocuments:
    """A streamed dataset, dealt out to lanes: by file if there are enough files, else every lanes-th example.

    A place counts the examples of the lane, held-out ones included, so that it is reached by skipping.
    Whether an example is held out depends on its content: its number in a stream would depend on the stream's
    order.
    """

    def __init__(
        self,
        stream: "IterableDataset",
        column: Column,
        cfg: TokensConfig,
        *,
        lanes: int,
        seed: int,
        held_out: bool,
    ):
        self.stream, self.column, self.lanes, self.seed = stream, column, lanes, seed
        self.cfg, self.held_out = cfg, held_out

    def documents(self, lane: int, epoch: int, first: int) -> Iterator[tuple[int, DocumentTokens]]:
        """Yield (place within the lane, tokens) of a lane's documents in one epoch, from `first` on.

        Raises:
            DataError: a file cannot be read on, or an example has tokens that the LLM has not.
        """
        stream = self.stream
        if not self.held_out:
            seed = int(random_keys(self.seed, epoch, 1)[0])
            stream = stream.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
        if stream.num_shards >= self.lanes:
            mine = iter(stream.shard(num_shards=self.lanes, index=lane).skip(first))
        else:
            mine = islice(stream.skip(lane + first * self.lanes), 0, None, self.lanes)
        for place in count(first):
            try:
                example = next(mine, None)
            except Exception as error:
                where = f"{self.column.field}, after example {place} of lane {lane}"
                reason = culprit(self.cfg) or first_line(error)
                raise DataError(f"{where} cannot be read: {reason}") from error
            if example is None:
                return
            if _falls_to_evaluation(example[self.column.name]) == self.held_out:
                yield place, self._read(example, f"{self.column.field}, example {place} of lane {lane}")

    def _read(self, example: dict[str, Any], where: str) -> DocumentTokens:
        try:
            return self.column.read(example)
        except UnusableDocument as error:
            return DocumentTokens.unusable(f"{where} {error}")
        except ForeignIds as error:
            raise DataError(f"{where}: {error}") from error


def open_dataset(
    cfg: TokensConfig, facts: LlmFacts, *, lanes: int, seed: int, held_out: bool
) -> IndexedDocuments | StreamedDocuments:
    """Open the training or the held-out documents of a dataset.

    Raises:
        ConfigError: it cannot be loaded, is empty, or has fewer documents than lanes.
    """
    field = f"tokens.dataset={cfg.dataset}"
    dataset, first = _load(cfg, field)
    if first is None:
        raise ConfigError(f"{field} has no examples in tokens.split={cfg.split}")
    column = Column(cfg, field, facts, first)
    columns = dataset.select_columns(column.columns)
    if cfg.streaming and not is_saved(cfg):
        return StreamedDocuments(columns, column, cfg, lanes=lanes, seed=seed, held_out=held_out)
    corpus = MappedCorpus(columns, column)
    return IndexedDocuments(corpus, lanes=lanes, seed=seed, held_out=held_out)


def check_dataset(cfg: TokensConfig) -> None:
    """Check that a dataset is named, and that a name which is a path is there.

    Raises:
        ConfigError: it is not.
    """
    if not cfg.dataset:
        raise ConfigError("tokens.dataset is missing; give a name, a folder, or json with tokens.data_files")
    if cfg.dataset.startswith(("/", ".", "~")) and not os.path.exists(cfg.dataset):
        raise ConfigError(
            f"tokens.dataset={cfg.dataset} does not exist; give a folder, or the name of a dataset of the Hub"
        )
    check_addresses(cfg)
    named = "/" not in cfg.dataset and not os.path.exists(cfg.dataset)
    if named and (cfg.dataset in RUNNING or cfg.data_files is not None and cfg.dataset not in LOADERS):
        raise ConfigError(
            f"tokens.dataset={cfg.dataset} is no loader that only reads; use one of {', '.join(LOADERS)}"
        )


def identity_of_dataset(cfg: TokensConfig) -> dict[str, list[int | str]]:
    """List the files of a dataset of the Hub, by name; {}: without a network they cannot be known.

    Raises:
        ConfigError: there is no such dataset, or its address is one that is not read here.
    """
    import datasets

    check_addresses(cfg)

    try:
        builder = datasets.load_dataset_builder(cfg.dataset or "", cfg.subset, data_files=cfg.data_files)
    except Exception as error:
        raise ConfigError(f"tokens.dataset={cfg.dataset} cannot be loaded: {first_line(error)}") from error
    names = [str(file) for files in (builder.config.data_files or {}).values() for file in files]
    # A commit to the dataset's card makes no other data.
    return {re.sub(r"@[0-9a-f]{40}/", "/", name): [0, ""] for name in sorted(names)}


def _load(cfg: TokensConfig, field: str) -> tuple[Any, dict[str, Any] | None]:
    """Load the dataset; return it and the first example with a value in the column (None: it is empty)."""
    import datasets

    check_dataset(cfg)
    if is_saved(cfg):
        return _load_saved(cfg, field)
    check_confined(cfg, field)
    remote = cfg.data_files is None and not os.path.exists(cfg.dataset or "")
    unreachable = remote and not is_offline() and not hub_answers()
    if unreachable:
        print_line(f"{field}: {UNREACHABLE}; looking in the local cache")
    try:
        with _cache_alone() if unreachable else nullcontext():
            dataset = datasets.load_dataset(
                cfg.dataset, cfg.subset, data_files=cfg.data_files, split=cfg.split, streaming=cfg.streaming
            )
            return dataset, _first(dataset, cfg.column)
    # Loaders read files of any origin, and pass on any error of their readers.
    except Exception as error:
        if unreachable:
            raise ConfigError(
                f"{field} is neither a local folder nor in the local cache ({first_line(error)}), and "
                f"{UNREACHABLE}; give a folder"
            ) from error
        reason = culprit(cfg) or first_line(error)
        raise ConfigError(f"{field} cannot be loaded: {reason}") from error


def _load_saved(cfg: TokensConfig, field: str) -> tuple[Any, dict[str, Any] | None]:
    """Load what `save_to_disk` wrote: it is on this machine and mapped, so it is read by number."""
    import datasets

    check_saved(cfg, field)
    try:
        found = datasets.load_from_disk(os.path.expanduser(cfg.dataset or ""))
    except Exception as error:
        raise ConfigError(f"{field} cannot be loaded: {first_line(error)}") from error
    if isinstance(found, datasets.DatasetDict):
        if cfg.split not in found:
            raise ConfigError(f"tokens.split={cfg.split} is not in {field}; it has {', '.join(found)}")
        found = found[cfg.split]
    return found, _first(found, cfg.column)


def _first(dataset: Any, column: str) -> dict[str, Any] | None:
    """Return the first example with a value in the column; if the first few lack one, the first of all."""
    examples = list(islice(iter(dataset), 1))
    if examples and examples[0].get(column) is None:
        examples += islice(iter(dataset), 1, EXAMPLES_LOOKED_AT)
    return next((each for each in examples if each.get(column) is not None), next(iter(examples), None))


@contextmanager
def _cache_alone() -> Iterator[None]:
    """Have the library look in its cache at once in a `with` block; it would try the Hub for long before."""
    from datasets import config

    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _falls_to_evaluation(value: Any) -> bool:
    text = value if isinstance(value, str) else ",".join(map(str, value or ()))
    return hashlib.sha256(text.encode("utf-8", errors="replace")).digest()[0] % HELD_OUT_ONE_IN == 0
