"""Single bits that turn over in files: how many of them are found by who reads the files.

python -m tests.helpers.flips [--flips 200]
"""

import argparse
import random
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sae_dist.atlas.manifest import check_files
from sae_dist.atlas.manifest import read_manifest as read_atlas
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.core.errors import SaeDistError
from sae_dist.export.formats import FORMATS
from sae_dist.export.importing import Imported
from sae_dist.export.saelens import export_firing_rates, load_firing_rates
from sae_dist.tokens.kept import ForeignIds
from sae_dist.tokens.shards import BLOCK_BYTES, ShardCorpus
from sae_dist.transport.cache import CachedChunkSource
from sae_dist.transport.cache_manifest import MANIFEST, read_manifest
from tests.helpers import fuzz_readers
from tests.helpers.described import described
from tests.unit.export.test_export_formats import F, make
from tests.unit.transport.test_cache import make as make_cache

ATLAS_LATENTS = 20


@dataclass(frozen=True)
class Kept:
    """Files that are kept, and what notices that one of them is damaged.

    Attributes:
        make: writes them into a folder.
        files: patterns of those in which a bit turns over.
        read: raises a `SaeDistError` if it notices; else returns what it read, to be compared.
        within: the bytes of a file in which it does; None: all.
    """

    make: Callable[[Path], Any]
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    within: Callable[[bytes], range] | None = None


def _export(name: str, kind: str, form: str = "autoencoder") -> Kept:
    def read(folder: Path) -> None:
        Imported.read(folder, name)

    return Kept(lambda folder: FORMATS[name].write(folder, make(kind, form)), ("*",), read)


def _chunks(folder: Path) -> None:
    source = CachedChunkSource(str(folder), read_manifest(str(folder)), dtype=torch.float32)
    for lane in range(source.manifest.lanes):
        list(source.open(lane, None))


def _documents(folder: Path) -> list[Any]:
    corpus, found = ShardCorpus(str(folder / "a.tar"), 1 << 16), []
    for number in range(len(corpus)):
        try:
            found.append((corpus.hashes[number], corpus.read(number).ids_T.tolist()))
        except ForeignIds as error:
            found.append(str(error))
    return found


def _first_header(data: bytes) -> range:
    """Return the bytes of the first member's header, in which one damaged bit hid all that follows."""
    return range(BLOCK_BYTES)


def _measured(folder: Path) -> None:
    FORMATS["saelens"].write(folder, make("topk"))
    export_firing_rates(folder, torch.rand(F))


def _atlas(folder: Path) -> None:
    described(folder, num_latents=ATLAS_LATENTS, documents=12)


def _all_of_atlas(folder: Path) -> list[Any]:
    """Read an atlas: what is asked of latents, and documents, which SQL alone reads, by their checksum."""
    manifest = read_atlas(folder)
    documents = replace(manifest, files={"documents.parquet": manifest.files["documents.parquet"]})
    check_files(folder, documents)
    atlas, found = Atlas.open(folder), []
    for latent in range(ATLAS_LATENTS):
        code = [each.tolist() for each in atlas.codes(latent)]
        found.append((atlas.latent(latent), atlas.examples(latent), code))
    return found


def _anywhere(data: bytes) -> range:
    """Return all bytes: a few bits of a page's header mean nothing, and what is read is compared."""
    return range(len(data))


KINDS = {
    "atlases": Kept(_atlas, ("*.parquet", "*/*.parquet", "*.json"), _all_of_atlas, _anywhere),
    "checkpoints": Kept(fuzz_readers._checkpoint, ("*",), fuzz_readers._read_checkpoint),
    "cache shards": Kept(make_cache, ("shards/*",), _chunks),
    "cache manifests": Kept(make_cache, (MANIFEST,), lambda folder: read_manifest(str(folder)) and None),
    "exports, SAELens": _export("saelens", "topk"),
    "exports, sparsify": _export("sparsify", "topk"),
    "exports, dictionary_learning": _export("dictionary_learning", "matryoshka"),
    "exports, circuit_tracer": _export("circuit_tracer", "jumprelu", "skip"),
    "firing rates": Kept(_measured, ("sparsity.*",), load_firing_rates),
    "token shards, headers": Kept(fuzz_readers._shards, ("*.tar",), _documents, _first_header),
}


def missed(name: str, flips: int, folder: Path) -> list[str]:
    """Turn over bits, one at a time; return those that were not noticed and changed what was read."""
    kept = KINDS[name]
    kept.make(folder)
    files = sorted({each for pattern in kept.files for each in folder.glob(pattern) if each.is_file()})
    contents = {file: file.read_bytes() for file in files}
    sound = kept.read(folder)
    found = []
    for number in range(flips):
        draw = random.Random(f"{name} {number}")
        file = draw.choice(files)
        data, bit = bytearray(contents[file]), draw.randrange(8)
        at = draw.choice(kept.within(data) if kept.within else range(len(data)))
        data[at] ^= 1 << bit
        file.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read = kept.read(folder)
            # Some bits of a header mean nothing, and nobody can tell.
            if kept.within is None or read != sound:
                found.append(f"{file.name}, byte {at}, bit {bit}")
        except SaeDistError:
            pass
        file.write_bytes(contents[file])
    return found


def main() -> int:
    """Count the bits that are found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flips", type=int, default=200)
    flips = parser.parse_args().flips
    bad = 0
    for name in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            left = missed(name, flips, Path(folder))
        print(f"{name:30} {flips - len(left)} of {flips} {'; '.join(left[:5])}", flush=True)
        bad += len(left)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
