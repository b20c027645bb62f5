"""An activation cache: the same chunks come back, the same files are written, damage is named."""

import json
import tarfile

import pytest
import torch

from sae_dist.config.rules.cache import check_length, chunks_needed, fill, rows_served, settled_keys
from sae_dist.config.run import RunConfig, flat
from sae_dist.core.errors import ConfigError, DataError
from sae_dist.core.sums import OPEN, sealed
from sae_dist.core.types import LlmFacts
from sae_dist.shuffle.lanes import Shuffle
from sae_dist.transport.cache import CachedChunkSource
from sae_dist.transport.cache_manifest import Manifest, check_files, read_manifest, write_manifest
from sae_dist.transport.cache_writer import CacheSize, LaneWriter
from tests.helpers.sources import Numbers, served

LANES, ROWS, CHUNKS = 3, 16, 7
FACTS = LlmFacts("org/lm", "org/lm", "h.1:out", 1, True, 64, 100, (0,), ())


def write(folder, *, lanes=range(LANES), dtype="float64", source=None, known=None, shard_chunks=3):
    shards, size = [], CacheSize(LANES, CHUNKS, shard_chunks, getattr(torch, dtype))
    for lane in lanes:
        source_of = source or Numbers(LANES, ROWS)
        writer = LaneWriter(
            folder, source_of, lane, size, known=known or {}, tick=lambda _chunks, _written: None
        )
        shards += writer.write()
    return shards


def make(folder, dtype="float64", **changes):
    """A cache of Numbers, with its manifest."""
    cfg = RunConfig()
    cfg.llm.name, cfg.tokens.kind, cfg.hook = "org/lm", "text", "h.1:out"
    cfg.shuffle.lanes, cfg.shuffle.chunk_rows = LANES, ROWS
    values = flat(cfg)
    manifest = Manifest(
        settings={key: values[key] for key in settled_keys()},
        revision=None,
        facts=FACTS,
        dtype=dtype,
        shard_chunks=3,
        chunks_per_lane=CHUNKS,
        shards=tuple(write(folder, dtype=dtype, **changes)),
    )
    write_manifest(folder, manifest)
    return manifest


def source(path, dtype=torch.float64):
    return CachedChunkSource(str(path), read_manifest(str(path)), dtype=dtype)


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.mark.parametrize("start", [0, 1, 3, 5, 6])
def test_chunks_come_back_from_any_place(start, tmp_path):
    manifest = make(tmp_path)
    assert read_manifest(str(tmp_path)) == manifest
    cached = source(tmp_path)
    assert cached.width == 1
    for lane in range(LANES):
        found = list(cached.open(lane, {"chunk": start, "epoch": 5}))
        live = Numbers(LANES, ROWS, CHUNKS).open(lane, {"chunk": start})
        assert len(found) == CHUNKS - start
        for chunk, other in zip(found, live, strict=True):
            assert (chunk.number, chunk.lane, chunk.start) == (other.number, other.lane, other.start)
            assert (chunk.excluded, chunk.repeated) == (1, 0)
            assert torch.equal(chunk.rows_RD, other.rows_RD) and torch.equal(chunk.ids_R, other.ids_R)


def test_rows_are_kept_in_one_dtype_and_given_in_another(tmp_path):
    make(tmp_path, "bfloat16")
    chunk = list(source(tmp_path, torch.float32).open(2, None))[-1]
    exact = list(Numbers(LANES, ROWS, CHUNKS).open(2, None))[-1].rows_RD
    assert chunk.rows_RD.dtype == torch.float32
    assert torch.equal(chunk.rows_RD, exact.bfloat16().float())


def test_files_depend_on_the_chunks_alone(tmp_path):
    one, other = tmp_path, tmp_path / "other"
    other.mkdir()
    write(one)
    write(other, lanes=reversed(range(LANES)))
    assert files(one) == files(other) and len(files(one)) == LANES * 3
    with tarfile.open(one / "shards" / "lane_1_00002.tar") as tar:
        assert [member.name for member in tar] == ["000000000019.json", "000000000019.safetensors"]
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "sae_dist")}


def test_only_shards_that_are_missing_are_computed(tmp_path):
    manifest = make(tmp_path)
    before = files(tmp_path)
    (tmp_path / "shards" / "lane_0_00001.tar").unlink()
    (tmp_path / "shards" / "lane_2_00002.tar").write_bytes(b"other bytes")
    (tmp_path / "shards" / ".lane_0_00001.tar.tmp").write_bytes(b"cut short")
    numbers = Numbers(LANES, ROWS)
    known = {shard.name: shard.sha256 for shard in manifest.shards}
    assert tuple(write(tmp_path, source=numbers, known=known)) == manifest.shards
    assert files(tmp_path) == before
    # Three chunks of one shard and one of the other, and the chunk before each.
    assert numbers.asked == (1 + 3) + (1 + 1)


def test_a_source_that_ends_early_is_named(tmp_path):
    with pytest.raises(DataError, match="lane 0 after 5 chunks of 7; .*tokens.epochs.*train_tokens"):
        write(tmp_path, source=Numbers(LANES, ROWS, 5))
    assert sorted(files(tmp_path)) == [".lane_0_00001.tar.tmp", "lane_0_00000.tar"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[1500] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip, "is damaged: its sha256"),
        (lambda path: path.write_bytes(path.read_bytes()[:-600]), "is damaged: its sha256"),
        (lambda path: path.unlink(), "cannot be read .*No such file"),
    ],
)
def test_a_damaged_shard_is_named_with_its_chunks(damage, says, tmp_path):
    make(tmp_path)
    cached = source(tmp_path)
    chunks = cached.open(1, None)
    next(chunks)
    damage(tmp_path / "shards" / "lane_1_00001.tar")
    with pytest.raises(DataError, match=rf"lane_1_00001.tar \(chunks 10 to 16 of lane 1, .* {says}"):
        list(chunks)
    assert len(list(cached.open(0, None))) == CHUNKS


def test_missing_and_short_files_are_seen_before_training(tmp_path):
    manifest = make(tmp_path)
    check_files(str(tmp_path), manifest)
    path = tmp_path / "shards" / "lane_2_00002.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ConfigError, match="chunk 20 of lane 2.* is damaged: 10239 bytes of 10240"):
        check_files(str(tmp_path), manifest)
    path.unlink()
    with pytest.raises(ConfigError, match="lane_2_00002.tar .* is missing; .*resume=auto"):
        check_files(str(tmp_path), manifest)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(schema=3), "has schema 3, .* reads 2"),
        (lambda c: c.pop("dtype"), "damaged .it has no 'dtype'"),
        (lambda c: c.pop("sha256"), "damaged .it is not what was written; if that is on purpose, set its"),
        (lambda c: c.update(chunks_per_lane=10**21), "damaged .*too large"),
        (lambda c: c["settings"].update({"shuffle.lanes": 1e21}), "damaged .*wrong type"),
        (lambda c: c["settings"].update({"shuffle.lanes": 10**9}), "damaged .*too large"),
        (lambda c: c["facts"].update(vocab_size="many"), "damaged .facts.vocab_size=many .*wrong type"),
        (lambda c: c["shards"].pop(), "damaged .*not those of its layout"),
        (lambda c: c["shards"][0].update(name="../../etc/passwd"), "damaged .*not those of its layout"),
        (lambda c: c.update(dtype="int4"), "damaged .*int4"),
        (
            lambda c: c["settings"].update({"llm.trust_remote_code": True}),
            "sets llm.trust_remote_code, which no",
        ),
        (lambda c: c["settings"].update({"output": "/elsewhere"}), "sets output, which no manifest settles"),
        (lambda c: c["settings"].update({"shuffle.lanes": 10**21}), "damaged .*too large"),
        (lambda c: c["settings"].update({"shuffle.lanes": 2**20}), "damaged .*not those of its layout"),
        (lambda c: c.update(chunks_per_lane=2**60), "damaged .*not those of its layout"),
        (lambda c: c.update(shard_chunks=0), "damaged .*not greater than 0"),
        (lambda c: c.update(chunks_per_lane="7"), "damaged .*wrong type"),
        (lambda c: c["settings"].update({"shuffle.chunk_rows": 2**24}), "fewer than its activations need"),
        (lambda c: c["facts"].update(width=2**40), "fewer than its activations need"),
        (lambda c: c["facts"].update(width=-1), "damaged .*0 or more"),
        (lambda c: c["facts"].update(auto=["os", "system"]), "are no classes of models"),
        (lambda c: c["facts"].update(_target_="os.system"), "sets facts._target_, which is no key"),
        (lambda c: c["shards"][0].update(lane=2), "is not of lane 2"),
        (lambda c: c["shards"][0].update(chunks=[[0]]), "damaged .*wrong type"),
        (lambda c: c.update(shards={}), "its shards are no list"),
        (lambda c: c.update(shards=[3, *c["shards"][1:]]), "shards holds 3, not named values"),
        (lambda c: c["shards"][0].update(chunks=[]), "not those of its layout"),
        (lambda c: c["facts"].update(auto="AutoModel"), "damaged .*wrong type"),
        (lambda c: c["facts"].update(prefix=5), "damaged .*facts.prefix has the wrong type"),
        (lambda c: c["facts"].update(name=["x"]), "damaged .*facts.name has the wrong type"),
        (lambda c: c["shards"][0].update(sha256="a\x1b[31m"), "damaged .*control character"),
    ],
)
def test_a_manifest_that_is_not_right(change, says, tmp_path):
    make(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    change(content)
    if "sha256" in content:  # whoever makes a manifest can make its checksum
        text = sealed(json.dumps(content | {"sha256": OPEN}))
    (tmp_path / "manifest.json").write_text(text if "sha256" in content else json.dumps(content))
    with pytest.raises(ConfigError, match=says):
        read_manifest(str(tmp_path))


def test_a_manifest_of_millions_of_lists_is_not_parsed(tmp_path, monkeypatch):
    (tmp_path / "manifest.json").write_text('{"schema": 1, "x": [' + "[]," * 5_000_000 + "0]}")
    monkeypatch.setattr("json.loads", lambda _: pytest.fail("parsed"))
    with pytest.raises(ConfigError, match="holds more than 200000 lists; harvest into fewer files"):
        read_manifest(str(tmp_path))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"schema": ' + "9" * 5000 + "}", '{"schema": 1, "facts": 3}']
)
def test_a_manifest_that_is_meant_to_be_work(text, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ConfigError, match="not readable|damaged"):
        read_manifest(str(tmp_path))


def test_no_manifest(tmp_path):
    with pytest.raises(ConfigError, match="no manifest.json; make one with sae-dist harvest"):
        read_manifest(str(tmp_path))
    (tmp_path / "harvest.yaml").write_text("")
    with pytest.raises(ConfigError, match="continue its harvest"):
        read_manifest(str(tmp_path))
    (tmp_path / "manifest.json").write_text("[1")
    with pytest.raises(ConfigError, match="not readable"):
        read_manifest(str(tmp_path))


@pytest.fixture
def server(tmp_path):
    with served(tmp_path) as url:
        yield url


def places(folder, server):
    return [
        f"{folder}/",
        f"{folder}/manifest.json",
        f"file://{folder}",
        server,
        f"{server}/manifest.json",
        f"pipe:cat {folder}/{{}}",
    ]


@pytest.mark.parametrize("number", range(6))
def test_a_cache_is_read_wherever_it_lies(number, tmp_path, server, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    make(tmp_path)
    place = places(tmp_path, server)[number]
    check_files(place, read_manifest(place))
    ids = torch.cat([chunk.ids_R for chunk in source(place).open(1, {"chunk": 2})])
    assert torch.equal(ids, torch.cat([c.ids_R for c in Numbers(LANES, ROWS, CHUNKS).open(1, {"chunk": 2})]))
    flip(tmp_path / "shards" / "lane_1_00001.tar")
    with pytest.raises(DataError, match="is damaged"):
        list(source(place).open(1, None))
    (tmp_path / "shards" / "lane_1_00001.tar").unlink()
    with pytest.raises(DataError, match="chunks 10 to 16 of lane 1.* cannot be read"):
        list(source(place).open(1, None))


@pytest.mark.parametrize("place", ["s3://bucket/cache", "http://127.0.0.1:9/cache", "pipe:cat /nowhere/{}"])
def test_a_place_that_cannot_be_read(place):
    with pytest.raises(ConfigError, match="cannot be read .*; give a folder, a URL, or a command"):
        read_manifest(place)


@pytest.mark.parametrize(("lanes", "chunk_rows", "block_chunks"), [(6, 16, 2), (4, 8, 1), (6, 16, 5)])
@pytest.mark.parametrize("steps", [1, 7, 40])
def test_no_run_lacks_a_chunk_at_its_end(lanes, chunk_rows, block_chunks, steps):
    batch = 24
    sizes = {"lanes": lanes, "chunk_rows": chunk_rows, "block_chunks": block_chunks}
    needed = chunks_needed(batch * steps, **sizes)
    assert batch * steps <= rows_served(needed, **sizes)
    for seed in range(5):
        shuffle = Shuffle(
            Numbers(lanes, chunk_rows, needed),
            list(range(lanes)),
            num_lanes=lanes,
            rows_per_step=batch,
            steps=steps,
            seed=seed,
            block_chunks=block_chunks,
        )
        for step in range(steps):
            shuffle.draw(step)
        assert shuffle.counts().chunks >= lanes * (needed - 2 * block_chunks), "and few are left over"


def test_a_cache_that_is_too_short_says_what_it_is_enough_for():
    cfg = RunConfig(train_tokens=10_000, batch=24)
    cfg.activations.path = "somewhere"
    cfg.shuffle.lanes, cfg.shuffle.chunk_rows = LANES, ROWS
    with pytest.raises(ConfigError, match="train_tokens=10000 needs .* has 8; .*at most train_tokens=336"):
        check_length(cfg, 8)
    cfg.train_tokens = 336
    check_length(cfg, 8)
    cfg.train_tokens, cfg.shuffle.block_chunks = 10_000, 2
    with pytest.raises(ConfigError, match="at most train_tokens=288"):
        check_length(cfg, 8)


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("seed", 1, True),
        ("hook", "h.2", True),
        ("hook", "h.1", False),
        ("hook", None, False),
        ("llm.dtype", None, False),
        ("tokens.max_norm_multiple", None, True),
        ("tokens.path", "texts", True),
        ("shuffle.lanes", 4, True),
    ],
)
def test_what_the_manifest_settles_is_not_overridden(key, value, refused, tmp_path):
    manifest = make(tmp_path)
    cfg = RunConfig()
    cfg.llm.name, cfg.tokens.kind, cfg.activations.path = "embedded", "text", "somewhere"
    section, _, name = key.rpartition(".")
    setattr(getattr(cfg, section) if section else cfg, name, value)
    if refused:
        there = manifest.settings[key]
        with pytest.raises(ConfigError, match=f"{key}={value} is not .*somewhere has {key}={there}; leave"):
            fill(cfg, manifest.settings, given={key}, other_names={})
        return
    filled = fill(cfg, manifest.settings, given={key}, other_names={})
    assert filled.hook == "h.1:out" and filled.llm.name == "org/lm" and filled.shuffle.lanes == LANES
    assert cfg.llm.name == "embedded"
