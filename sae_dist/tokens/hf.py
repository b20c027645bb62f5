"""Documents of Hugging Face datasets, streamed, or downloaded and read by number."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import count, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.hub import UNREACHABLE, hub_answers, is_offline
from sae_dist.core.text import first_line, print_line
from sae_dist.tokens.documents import HELD_OUT_ONE_IN
from sae_dist.tokens.encoder import Encoder, given_ids
from sae_dist.tokens.indexed import IndexedDocuments, lowest_hashes, random_keys

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

SHUFFLE_BUFFER = 64


class Column:
    """The column of a dataset that is read: it holds text, or lists of token ids.

    Raises:
        ConfigError: the first example has no such column, or neither text nor token ids in it.
    """

    def __init__(self, name: str, field: str, encoder: Encoder, vocab_size: int, first: dict[str, Any]):
        self.name, self.field, self.encoder, self.vocab_size = name, field, encoder, vocab_size
        if name not in first:
            raise ConfigError(
                f"tokens.column={name} is not a column of {field}; its columns: {', '.join(first)}"
            )
        try:
            self.ids(first, 0)
        except DataError as error:
            raise ConfigError(f"tokens.column={name}: {error}") from error

    def ids(self, example: dict[str, Any], number: int) -> np.ndarray:
        """Return the token ids [tokens] of one example.

        Raises:
            DataError: the column holds neither text nor token ids of this LLM.
        """
        value = example[self.name]
        if isinstance(value, str):
            return self.encoder.ids(value)
        try:
            return given_ids([] if value is None else value, self.vocab_size)
        except ValueError as error:
            raise DataError(f"{self.field}, example {number} is not text: {error}") from error


class MappedCorpus:
    """A downloaded dataset, whose examples are read by number."""

    def __init__(self, dataset: "Dataset", column: Column):
        self.field, self.dataset, self.column = column.field, dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def held_out(self) -> np.ndarray:
        """Return a mask [examples] of those held out for evaluation, chosen by a hash of their numbers."""
        return lowest_hashes(random_keys(0, 0, len(self.dataset)))

    def ids(self, number: int) -> np.ndarray:
        """Return the token ids [tokens] of one example."""
        return self.column.ids(self.dataset[number], number)


class StreamedDocuments:
    """A streamed dataset, dealt out to lanes: by file if there are enough files, else every lanes-th example.

    A place counts the examples of the lane, held-out ones included, so that it is reached by skipping.
    Whether an example is held out depends on its content: its number in a stream would depend on the stream's
    order.
    """

    def __init__(self, stream: "IterableDataset", column: Column, *, lanes: int, seed: int, held_out: bool):
        self.stream, self.column, self.lanes, self.seed = stream, column, lanes, seed
        self.held_out = held_out

    def documents(self, lane: int, epoch: int, first: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (place within the lane, token ids) of a lane's documents in one epoch, from `first` on."""
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
                raise DataError(f"{where} cannot be read: {first_line(error)}") from error
            if example is None:
                return
            if _falls_to_evaluation(example[self.column.name]) == self.held_out:
                yield place, self.column.ids(example, place)


def open_dataset(
    cfg: TokensConfig, encoder: Encoder, vocab_size: int, *, lanes: int, seed: int, held_out: bool
) -> IndexedDocuments | StreamedDocuments:
    """Open the training or the held-out documents of a dataset.

    Raises:
        ConfigError: it cannot be loaded, is empty, or has fewer documents than lanes.
    """
    field = f"tokens.dataset={cfg.dataset}"
    dataset, first = _load(cfg, field)
    if first is None:
        raise ConfigError(f"{field} has no examples in tokens.split={cfg.split}")
    column = Column(cfg.column, field, encoder, vocab_size, first)
    if cfg.streaming:
        columns = dataset.select_columns([cfg.column])
        return StreamedDocuments(columns, column, lanes=lanes, seed=seed, held_out=held_out)
    corpus = MappedCorpus(dataset.select_columns([cfg.column]), column)
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


def _load(cfg: TokensConfig, field: str) -> tuple[Any, dict[str, Any] | None]:
    """Load the dataset; return it and its first example (None: it is empty)."""
    import datasets

    check_dataset(cfg)
    remote = cfg.data_files is None and not os.path.exists(cfg.dataset or "")
    unreachable = remote and not is_offline() and not hub_answers()
    if unreachable:
        print_line(f"{field}: {UNREACHABLE}; looking in the local cache")
    try:
        with _cache_alone() if unreachable else nullcontext():
            dataset = datasets.load_dataset(
                cfg.dataset, cfg.subset, data_files=cfg.data_files, split=cfg.split, streaming=cfg.streaming
            )
            return dataset, next(iter(dataset), None)
    # Loaders read files of any origin, and pass on any error of their readers.
    except Exception as error:
        if unreachable:
            raise ConfigError(
                f"{field} is neither a local folder nor in the local cache ({first_line(error)}), and "
                f"{UNREACHABLE}; give a folder"
            ) from error
        raise ConfigError(f"{field} cannot be loaded: {first_line(error)}") from error


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
