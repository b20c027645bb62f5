"""The manifest of an activation cache: which chunks it holds, and how they were made.

<cache>/manifest.json           written last: a folder without it is an unfinished harvest
<cache>/shards/lane_<v>_<n>.tar  chunks of lane v from n * shard_chunks on, whichever rank computed them
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlparse

from sae_dist.config.plain import fitting
from sae_dist.config.rules.cache import settled
from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_text
from sae_dist.core.parsing import parse_json, read_bounded, read_stream, reading
from sae_dist.core.sums import OPEN, is_sealed, sealed
from sae_dist.core.text import first_line
from sae_dist.core.types import LlmFacts

SCHEMA = 2
WITHOUT_SUM = 1
"""The schema of manifests that have no checksum of themselves."""
MANIFEST = "manifest.json"
HARVEST = "harvest.yaml"
PIECE_BYTES = 1 << 20
LARGEST_BYTES = 16 << 20
"""Of a manifest: 40,000 shards, several terabytes; whatever it holds is read within 500 MB."""
MOST_PARTS = 200_000
"""Lists and objects of a manifest, two for each shard."""
FEWER = "harvest into fewer files, with a larger cache.shard_chunks"
NUMBERS = ("chunks", "prefix", "suffix", "tp_sizes")
"""Lists of whole numbers; the others are of text."""
ITEM_BYTES = {"bfloat16": 2, "float32": 4, "float64": 8}
"""The dtypes that a cache can have, and the bytes of a number."""


@dataclass(frozen=True)
class Location:
    """The place of a cache: a folder, a URL, or a pattern in which {} is replaced by a file's name."""

    path: str

    def url(self, name: str) -> str:
        """Return the URL or path of one of the cache's files."""
        if "{}" in self.path:
            return self.path.replace("{}", name)
        return f"{self.path.removesuffix(MANIFEST).rstrip('/') or '/'}/{name}"

    def local(self, name: str) -> Path | None:
        """Return the file's path on this machine; None: it is remote."""
        url = urlparse(self.url(name))
        if url.scheme == "":
            return Path(self.url(name)).expanduser()
        return Path(url.path) if url.scheme == "file" else None


@dataclass(frozen=True)
class Shard:
    """A tar file of chunks. `chunks` are their numbers, in order; `sha256` is that of the whole file."""

    name: str
    lane: int
    chunks: tuple[int, ...]
    sha256: str
    bytes: int

    def describe(self) -> str:
        """Return the shard's name and chunks, for messages."""
        first, last = self.chunks[0], self.chunks[-1]
        which = f"chunk {first}" if first == last else f"chunks {first} to {last}"
        return f"{self.name} ({which} of lane {self.lane}, {len(self.chunks)} in all)"


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json.

    Attributes:
        settings: every setting that decides which chunks there are, by its key in the config
            (`config.rules.cache.settled_keys`), as it was resolved for the harvest.
        revision: commit of a Hugging Face Hub model; None: a local folder, which has no commit.
        facts: those of the LLM; its `path` is that of the machine that harvested.
    """

    settings: dict[str, Any]
    revision: str | None
    facts: LlmFacts
    dtype: str
    shard_chunks: int
    chunks_per_lane: int
    shards: tuple[Shard, ...] = field(repr=False)

    @property
    def lanes(self) -> int:
        return self.settings["shuffle.lanes"]

    @property
    def rows(self) -> int:
        """The number of rows of each chunk, R."""
        return self.settings["shuffle.chunk_rows"]

    @property
    def widths(self) -> list[int]:
        """The number of columns of each hook within a row."""
        facts = self.facts
        return list(facts.widths)

    def content(self) -> dict[str, Any]:
        """Return the content of the file, JSON-able."""
        content: dict[str, Any] = {"schema": SCHEMA, "sha256": OPEN} | dataclasses.asdict(self)
        # `path` is the model's folder on this machine; a harvest reads no grid of hooks, so that it has no
        # `more`. What the others leave out shows in the chunks.
        for key in ("path", "more", "more_targets", "special_ids", "pad_id"):
            del content["facts"][key]
        shards = content.pop("shards")
        derived = {"widths": self.widths, "num_chunks": self.lanes * self.chunks_per_lane}
        return content | derived | {"shards": shards}


def layout(lane: int, *, lanes: int, chunks: int, shard_chunks: int) -> dict[str, tuple[int, ...]]:
    """Lay out a lane of `chunks` chunks in shards: {name: chunk numbers}, a function of sizes alone."""
    return {
        f"shards/lane_{lane:0{len(str(lanes - 1))}d}_{part:05d}.tar": tuple(
            index * lanes + lane for index in range(first, min(first + shard_chunks, chunks))
        )
        for part, first in enumerate(range(0, chunks, shard_chunks))
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json, complete or absent."""
    content = manifest.content()
    # One line per shard: there may be many, with many chunks.
    shards = ",\n".join(f"  {json.dumps(each)}" for each in content.pop("shards"))
    head = json.dumps(content, indent=1).removesuffix("\n}")
    text = f'{head},\n "shards": [\n{shards}\n ]\n}}\n'
    write_text(folder / MANIFEST, sealed(text), synced=True)


def read_manifest(path: str) -> Manifest:
    """Read the manifest of the cache at `path`.

    Raises:
        ConfigError: there is no manifest, it is of another version, it is damaged, or it sets a key of the
            config that no manifest settles.
    """
    asked, location = f"activations.path={path}", Location(path)
    data = _read(location, asked)
    if data.count(b"[") + data.count(b"{") > MOST_PARTS:
        raise ConfigError(f"{asked}: its {MANIFEST} holds more than {MOST_PARTS} lists; {FEWER}")
    with reading(f"{asked}:", f"its {MANIFEST} is not readable ({{reason}}); harvest the cache again"):
        text = data.decode("utf-8")
        content = parse_json(text, unique=True)
        schema = content.get("schema")
    if schema not in (SCHEMA, WITHOUT_SUM):
        raise ConfigError(
            f"{asked}: its {MANIFEST} has schema {str(schema)[:40]}, and this version of sae-dist reads "
            f"{SCHEMA}; harvest the cache again, or use the version that made it"
        )
    with reading(f"{asked}:", f"its {MANIFEST} is damaged ({{reason}}); harvest the cache again"):
        if schema == SCHEMA and not is_sealed(text, content.get("sha256")):
            raise ValueError('it is not what was written; if that is on purpose, set its "schema" to 1')
        manifest = _parse(content)
        _check(manifest)
    return manifest


def check_files(path: str, manifest: Manifest) -> None:
    """Check that every shard exists in its full length, where that can be seen without reading it.

    Raises:
        ConfigError: a shard does not; the message names it and its chunks.
    """
    location = Location(path)
    for shard in manifest.shards:
        file = location.local(shard.name)
        if file is None:
            return
        found = file.stat().st_size if file.is_file() else None
        if found != shard.bytes:
            state = "is missing" if found is None else f"is damaged: {found} bytes of {shard.bytes}"
            raise ConfigError(f"activations.path={path}: shard {shard.describe()} {state}; {mend()}")


def mend() -> str:
    """Return the advice about a shard that is missing or damaged."""
    return "delete it and run the same sae-dist harvest with resume=auto, or copy it again"


def sha256_of(source: Any, copy: Any = None) -> str:
    """Return the sha256 of a stream, read to its end; its bytes are written to `copy` as well."""
    digest = hashlib.sha256()
    while piece := source.read(PIECE_BYTES):
        digest.update(piece)
        if copy is not None:
            copy.write(piece)
    return digest.hexdigest()


def _read(location: Location, asked: str) -> bytes:
    local = location.local(MANIFEST)
    if local is not None:
        if not local.is_file():
            unfinished = (local.parent / HARVEST).is_file()
            fix = "continue its harvest with resume=auto" if unfinished else "make one with sae-dist harvest"
            raise ConfigError(f"{asked} is not a cache: it has no {MANIFEST}; {fix}")
        with reading(f"{asked}:", f"its {MANIFEST} cannot be read ({{reason}})"):
            return read_bounded(local, LARGEST_BYTES)
    from webdataset import gopen

    try:
        with gopen(location.url(MANIFEST)) as stream:
            return read_stream(stream, LARGEST_BYTES)
    except (OSError, ValueError) as error:
        reason = first_line(error)[:200]
        raise ConfigError(
            f"{asked}: {location.url(MANIFEST)} cannot be read ({reason}); give a folder, a URL, or a "
            "command such as 'pipe:aws s3 cp s3://bucket/cache/{} -'"
        ) from None


def _parse(content: Mapping[str, Any]) -> Manifest:
    """Return the manifest in a file's content, of which every value has its type and its bound.

    Raises:
        KeyError, TypeError, ValueError: one is missing, unknown, or does not fit.
    """
    facts = _fields(LlmFacts, content["facts"] | {"path": content["facts"]["name"]}, "facts.")
    if not all(name.isidentifier() and name.startswith("AutoModel") for name in facts.get("auto", ())):
        raise ValueError(f"facts.auto={facts['auto']} are no classes of models")
    shards = content["shards"]
    if not isinstance(shards, list):
        raise ValueError("its shards are no list")
    values = {key: content[key] for key in ("revision", "dtype", "shard_chunks", "chunks_per_lane")}
    values["settings"], values["facts"] = settled(content["settings"]), LlmFacts(**facts)
    values["shards"] = tuple(Shard(**_fields(Shard, each, "shards.")) for each in shards)
    for key in ("dtype", "shard_chunks", "chunks_per_lane"):
        values[key] = fitting(values[key], str if key == "dtype" else int, key)
    values["revision"] = fitting(values["revision"], str | None, "revision")
    return Manifest(**values)


def _fields(kind: type, values: Any, prefix: str) -> dict[str, Any]:
    """Return the fields of a dataclass, as JSON has them: tuples are lists there."""
    if not isinstance(values, dict):
        raise ValueError(f"{prefix.removesuffix('.')} holds {str(values)[:20]}, not named values")
    hints, found = _hints(kind), {}
    for key, value in values.items():
        if key not in hints:
            raise ValueError(f"it sets {prefix}{key}, which is no key of a manifest")
        hint = hints[key]
        if value is not None and isinstance(value, list) != ("tuple" in str(hint)):
            raise ValueError(f"{prefix}{key} has the wrong type")
        if isinstance(value, list):
            item = int if key in NUMBERS else str
            found[key] = tuple(fitting(each, item, prefix + key) for each in value)
        else:
            found[key] = fitting(value, hint, prefix + key)
            if type(found[key]) is int and found[key] < 0:
                raise ValueError(f"{prefix}{key}={value} must be 0 or more")
    return found


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, localns={"Tensor": Any})


def _check(manifest: Manifest) -> None:
    """Check sizes before anything is made of them, and that the shards are those of the layout.

    So no other file name is ever opened, and no number is larger than the bytes that stand behind it.
    """
    if manifest.dtype not in ITEM_BYTES:
        raise ValueError(f"dtype {manifest.dtype[:60]}")
    lanes, shards = manifest.lanes, manifest.shards
    sizes = {"chunks": manifest.chunks_per_lane, "shard_chunks": manifest.shard_chunks}
    if min(sizes.values()) < 1:
        raise ValueError("its sizes are not greater than 0")
    per_lane = -(-manifest.chunks_per_lane // manifest.shard_chunks)
    chunks = sum(len(shard.chunks) for shard in shards)
    if lanes * per_lane != len(shards) or lanes * manifest.chunks_per_lane != chunks:
        raise ValueError("its shards are not those of its layout")
    expected: dict[str, tuple[int, ...]] = {}
    for lane in range(lanes):
        expected |= layout(lane, lanes=lanes, **sizes)
    if {shard.name: shard.chunks for shard in shards} != expected:
        raise ValueError("its shards are not those of its layout")
    row_bytes = sum(manifest.widths) * ITEM_BYTES[manifest.dtype]
    for shard in shards:
        if not 0 <= shard.lane < lanes or shard.chunks[0] % lanes != shard.lane:
            raise ValueError(f"{shard.name} is not of lane {shard.lane}")
        if shard.bytes < len(shard.chunks) * manifest.rows * row_bytes:
            raise ValueError(f"{shard.name} has {shard.bytes} bytes, fewer than its activations need")
