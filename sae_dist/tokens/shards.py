"""Documents of token ids in tar files in webdataset's layout: `<key>.ids.npy` or `<key>.ids.json`."""

import glob
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np

from sae_dist.core.errors import ConfigError, DataError
from sae_dist.tokens.encoder import given_ids
from sae_dist.tokens.indexed import lowest_hashes

EXPANDED = ("{", "$", "::")
"""Signs of a pattern for which webdataset, which imports torch, has to be asked."""
ENDINGS = (".ids.npy", ".ids.json")


class ShardCorpus:
    """The samples of tar files, read by an index of byte offsets that is built from the tar headers.

    Raises:
        ConfigError: no such file, a tar that is truncated or compressed, no samples with token ids, or ids
            in the first sample that are outside of the LLM's vocabulary.
    """

    def __init__(self, pattern: str, vocab_size: int):
        self.field = f"tokens.path={pattern}"
        self.vocab_size = vocab_size
        self.shards = expand(pattern, self.field)
        shard_of: list[int] = []
        members: list[tuple[int, int]] = []
        hashes: list[int] = []
        for number, shard in enumerate(self.shards):
            for name, offset, size in _scan(shard, self.field):
                shard_of.append(number)
                members.append((offset, size))
                digest = hashlib.sha256(f"{shard.name}/{name}".encode()).digest()
                hashes.append(int.from_bytes(digest[:8], "big"))
        if not members:
            raise ConfigError(f"{self.field} holds no samples named *{ENDINGS[0]} or *{ENDINGS[1]}")
        self.shard_of = np.array(shard_of)
        self.members = np.array(members)
        self.hashes = np.array(hashes, np.uint64)
        try:
            self.ids(0)
        except DataError as error:
            raise ConfigError(f"{self.field}: {error}") from error

    def __len__(self) -> int:
        return len(self.members)

    def held_out(self) -> np.ndarray:
        """Return a mask [samples] of those held out, chosen by a hash of shard and sample names."""
        return lowest_hashes(self.hashes)

    def ids(self, number: int) -> np.ndarray:
        """Return the token ids [tokens] of one sample.

        Raises:
            DataError: not a list of token ids, or ids outside of the LLM's vocabulary.
        """
        shard = self.shards[self.shard_of[number]]
        offset, size = (int(value) for value in self.members[number])
        try:
            with open(shard, "rb") as file:
                file.seek(offset)
                data = file.read(size)
            values = np.load(io.BytesIO(data)) if data[:6] == b"\x93NUMPY" else json.loads(data)
            return given_ids(values, self.vocab_size)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{_where(shard, offset)} cannot be read: {error}") from error


def expand(pattern: str, field: str) -> list[Path]:
    """List the local files that a pattern with braces, wildcards or both matches.

    Args:
        field: the key and value that name it, for messages.

    Raises:
        ConfigError: it matches no file, or names one that does not exist.
    """
    names = [pattern]
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


def _scan(shard: Path, field: str) -> list[tuple[str, int, int]]:
    """List (name, byte offset, bytes) of the samples in one tar file.

    Raises:
        ConfigError: the file is compressed, damaged or truncated.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            members = tar.getmembers()
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(
            f"{field}: {shard} is not a whole, uncompressed tar file ({error}); write it again"
        ) from error
    # A tar ends with blocks of zeros. One that was cut between two members has none, but can still be read.
    end = max((member.offset_data + -(-member.size // 512) * 512 for member in members), default=0)
    if shard.stat().st_size < end + 512:
        raise ConfigError(f"{field}: {shard} is truncated after {len(members)} members; write it again")
    return [(m.name, m.offset_data, m.size) for m in members if m.isfile() and m.name.endswith(ENDINGS)]


def _where(shard: Path, offset: int) -> str:
    with tarfile.open(shard, "r:") as tar:
        name = next((member.name for member in tar if member.offset_data == offset), f"byte {offset}")
    return f"{shard}, sample {name}"
