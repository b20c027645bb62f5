"""Documents of token ids in tar files in webdataset's layout: `<key>.ids.npy` or `<key>.ids.json`.

Beside them, `<key>.mask.npy` or `<key>.mask.json` may hold an attention mask: tokens with 0 are not read.
"""

import glob
import hashlib
import os
import re
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.npy import MAGIC, npy_array
from sae_dist.core.parsing import parse_json, parsing_errors, reading
from sae_dist.tokens.encoder import given_ids, masked_ids
from sae_dist.tokens.indexed import lowest_hashes
from sae_dist.tokens.kept import DocumentTokens, ForeignIds, UnusableDocument

EXPANDED = ("{", "$", "::")
"""Signs of a pattern for which webdataset, which imports torch, has to be asked."""
ENDINGS = (".ids.npy", ".ids.json")
MASK_ENDINGS = (".mask.npy", ".mask.json")
NO_MEMBER = (0, 0)
MOST_NAMES = 1_000_000
BLOCK_BYTES, PIECE_BYTES = tarfile.BLOCKSIZE, 1 << 20


class Member(tarfile.TarInfo):
    """A member of a tar whose size is not negative: tarfile would go backwards, for ever."""

    def _block(self, count: int) -> int:
        if count < 0:
            raise tarfile.ReadError("a member of negative size")
        return super()._block(count)  # type: ignore[misc]


class ShardCorpus:
    """The samples of tar files, read by an index of byte offsets that is built from the tar headers.

    Raises:
        ConfigError: no such file, a tar that is truncated or compressed, no samples with token ids, or ids
            in a file's first sample that are outside of the LLM's vocabulary.
    """

    def __init__(self, pattern: str, vocab_size: int):
        self.field = f"tokens.path={pattern}"
        self.vocab_size = vocab_size
        self.shards = expand(pattern, self.field)
        shard_of: list[int] = []
        members: list[tuple[int, int]] = []
        masks: list[tuple[int, int]] = []
        hashes: list[int] = []
        for number, shard in enumerate(self.shards):
            found = _scan(shard, self.field)
            mask_of = {_key(each): place for each, *place in found if each.endswith(MASK_ENDINGS)}
            for name, offset, size in found:
                if name.endswith(MASK_ENDINGS):
                    continue
                shard_of.append(number)
                members.append((offset, size))
                offset, size = mask_of.get(_key(name), NO_MEMBER)
                masks.append((offset, size))
                digest = hashlib.sha256(f"{shard.name}/{name}".encode(errors="surrogateescape")).digest()
                hashes.append(int.from_bytes(digest[:8], "big"))
        if not members:
            raise ConfigError(f"{self.field} holds no samples named *{ENDINGS[0]} or *{ENDINGS[1]}")
        self.shard_of = np.array(shard_of)
        self.members, self.masks = np.array(members), np.array(masks)
        self.hashes = np.array(hashes, np.uint64)
        for first in np.unique(self.shard_of, return_index=True)[1]:
            self._check(int(first))

    def __len__(self) -> int:
        return len(self.members)

    def held_out(self) -> np.ndarray:
        """Return a mask [samples] of those held out, chosen by a hash of shard and sample names."""
        return lowest_hashes(self.hashes)

    def read(self, number: int) -> DocumentTokens:
        """Return the tokens of one sample.

        Raises:
            UnusableDocument: not a list of token ids, or a mask that does not fit it.
            ForeignIds: ids outside of the LLM's vocabulary.
            DataError: the file is gone, or was cut.
        """
        with reading("cannot be read:", "{reason}", UnusableDocument, (ForeignIds,)):
            values, mask = self._values(number, self.members), self._values(number, self.masks)
            return masked_ids(given_ids(values, self.vocab_size), mask)

    def where(self, number: int) -> str:
        """Name a sample for a person: its file, and its name in it."""
        shard, offset = self.shards[self.shard_of[number]], int(self.members[number][0])
        name = None
        with suppress(*parsing_errors()), tarfile.open(shard, "r:", tarinfo=Member) as tar:
            name = next((member.name for member in tar if member.offset_data == offset), None)
        return f"{shard}, sample {name or f'at byte {offset}'}"

    def _values(self, number: int, members: np.ndarray) -> Any:
        """Return what a member of a sample holds; None: the sample has no such member."""
        shard = self.shards[self.shard_of[number]]
        offset, size = (int(value) for value in members[number])
        if (offset, size) == NO_MEMBER:
            return None
        try:
            with open(shard, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise DataError(f"{shard} cannot be read: {error.strerror}") from error
        if len(data) < size:
            raise DataError(f"{shard} was cut since the run began; put it back as it was, and go on")
        return npy_array(data) if data.startswith(MAGIC) else parse_json(data)

    def _check(self, number: int) -> None:
        """Check a sample before the run begins.

        Raises:
            ConfigError: it cannot be used.
        """
        try:
            self.read(number)
        except (DataError, ForeignIds) as error:
            raise ConfigError(f"{self.field}: {self.where(number)} {error}") from error


def expand(pattern: str, field: str) -> list[Path]:
    """List the local files that a pattern with braces, wildcards or both matches.

    Args:
        field: the key and value that name it, for messages.

    Raises:
        ConfigError: it matches no file, or names one that does not exist.
    """
    names = [pattern]
    if (number := _number(pattern)) > MOST_NAMES:
        raise ConfigError(f"{field} stands for {number:,} names, at most {MOST_NAMES:,} are read")
    if any(sign in pattern for sign in EXPANDED):
        from webdataset.shardlists import expand_urls

        try:
            names = expand_urls(pattern)
        except ValueError as error:
            raise ConfigError(f"{field} is not a pattern: {error}") from error
    found = [name for part in names for name in (sorted(glob.glob(part)) if glob.has_magic(part) else [part])]
    missing = [name for name in found if not os.path.isfile(name)]
    if missing or not found:
        what = f"names {missing[0]}, which is not a file" if missing else "matches no file"
        raise ConfigError(f"{field} {what}; give tar files, or a pattern such as shards/x-{{000..009}}.tar")
    return [Path(name) for name in found]


def _number(pattern: str) -> int:
    """Return how many names the braces of a pattern stand for, or more, before they are written out."""
    number = 1
    for inner in re.findall(r"\{([^{}]*)\}", pattern):
        ends = re.fullmatch(r"(-?\d{1,18})\.\.(-?\d{1,18})(\.\.-?\d+)?", inner)
        number *= abs(int(ends[2]) - int(ends[1])) + 1 if ends else inner.count(",") + 1
    return number


def _scan(shard: Path, field: str) -> list[tuple[str, int, int]]:
    """List (name, byte offset, bytes) of the samples in one tar file.

    Raises:
        ConfigError: the file is compressed, damaged or truncated.
    """
    with reading(f"{field}:", f"{shard} is not a whole, uncompressed tar file ({{reason}}); write it again"):
        with tarfile.open(shard, "r:", tarinfo=Member) as tar:
            members = tar.getmembers()
            end = tar.offset
        _check_end(shard, end, len(members))
        wanted = [m for m in members if m.isfile() and m.name.endswith((*ENDINGS, *MASK_ENDINGS))]
        for member in wanted:
            if member.offset_data + member.size > end:
                raise ValueError(f"{member.name} in it is not stored as it is")
    return [(member.name, member.offset_data, member.size) for member in wanted]


def _check_end(shard: Path, end: int, members: int) -> None:
    """Check that a tar ends where its members were found to end.

    tarfile takes a header that is damaged for the end, and a tar may have been cut between two members.

    Raises:
        ValueError: there is no block of zeros at byte `end`, or something else than zeros behind it.
    """
    with open(shard, "rb") as file:
        file.seek(end)
        if len(block := file.read(BLOCK_BYTES)) < BLOCK_BYTES:
            raise ValueError(f"it is truncated after {members} members")
        while block:
            if block.strip(b"\0"):
                raise ValueError(
                    f"what follows its {members} members, at byte {end}, is neither a member nor the end"
                )
            block = file.read(PIECE_BYTES)


def _key(name: str) -> str:
    """Return the key of a member: its name without `.ids.npy` and the like."""
    return name.rsplit(".", 2)[0]
