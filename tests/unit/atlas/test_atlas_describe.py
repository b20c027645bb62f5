"""What an atlas says of latents, against plain sums over dense codes [rows, F]."""

from collections import Counter
from math import log2

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import chi2

from sae_dist.atlas.describe.blocks import AT_ONCE, blocks
from sae_dist.atlas.describe.codes import Codes
from sae_dist.atlas.describe.hashing import hash64
from sae_dist.atlas.describe.lists import Extra, Ranked
from sae_dist.atlas.describe.part import describe_part
from sae_dist.atlas.describe.settings import Settings
from sae_dist.atlas.describe.text import NO_TOKEN, Text
from sae_dist.atlas.postings import merge_part, write_window
from sae_dist.atlas.schema import (
    EXAMPLES,
    KEPT,
    LATENTS,
    POSTINGS,
    QUANTILES,
    ROW_GROUPS,
    TOKENS,
    TOKENS_SCHEMA,
    TOP,
    WORK,
    part_file,
    part_latents,
    parts,
)
from sae_dist.atlas.tables import write_table
from tests.helpers.atlas import codes, index
from tests.helpers.plain_hash import splitmix

F = 4096
SETTINGS = Settings(top=4, bins=3, each=2, tokens=5, next=4)


def described(folder, num_latents, settings=SETTINGS, extra=None):
    """Describe all parts; return the rows of both tables."""
    found = {LATENTS: [], EXAMPLES: []}
    for part in range(parts(num_latents)):
        describe_part(folder, part, num_latents, settings, extra or Extra())
        for table in found:
            found[table] += pq.read_table(part_file(folder, table, part)).to_pylist()
    return found[LATENTS], found[EXAMPLES]


@pytest.fixture(scope="module")
def atlas(tmp_path_factory):
    """Dense codes, the text by place, and what the atlas says."""
    folder = tmp_path_factory.mktemp("atlas")
    index(folder, num_latents=F, documents=80, vocabulary=60)
    text = {name: column.to_numpy() for name, column in _columns(folder)}
    at_R = np.flatnonzero(text["state"] == KEPT)
    latent_P, row_P, code_P = codes(len(at_R), F)
    dense_RF = np.zeros((len(at_R), F), np.float32)
    dense_RF[row_P, latent_P] = code_P
    latents, examples = described(folder, F)
    by_latent = {}
    for row in examples:
        by_latent.setdefault(row["latent"], []).append(row)
    return dense_RF, text, at_R, latents, by_latent


def _columns(folder):
    table = pq.read_table(folder / TOKENS)
    return zip(table.column_names, table.columns, strict=True)


def test_numbers_of_every_latent(atlas):
    dense_RF, text, at_R, latents, _ = atlas
    assert [row["latent"] for row in latents] == list(range(F))
    assert sum(row["count"] for row in latents) == (dense_RF > 0).sum() == 8 * len(at_R)
    for row in latents:
        code_R = dense_RF[:, row["latent"]]
        fired = np.sort(code_R[code_R > 0]).astype(np.float64)
        assert row["count"] == len(fired)
        assert row["rate"] == len(fired) / len(at_R)
        assert row["documents"] == len({text["document"][at] for at in at_R[code_R > 0]})
        assert row["sum"] == pytest.approx(fired.sum(), rel=1e-12)
        assert row["squares"] == pytest.approx((fired**2).sum(), rel=1e-12)
        if len(fired) == 0:
            assert row["least"] is None and row["most"] is None and row["quantiles"] == []
            assert set(row["histogram"]) == set(row["bins"]) == {0}
            continue
        assert (row["least"], row["most"]) == (fired[0], fired[-1])
        assert row["quantiles"] == pytest.approx([np.quantile(fired, q) for q in QUANTILES], rel=1e-6)
        assert row["histogram"] == np.histogram(fired, 48, (0, fired[-1]))[0].tolist()
        edges = [fired[-1] / 2, fired[-1] / 4]
        assert row["bins"] == [
            sum(fired > edges[0]),
            sum((fired > edges[1]) & (fired <= edges[0])),
            sum(fired <= edges[1]),
        ]


def test_examples_of_every_latent(atlas):
    dense_RF, text, at_R, latents, examples = atlas
    of_hash = 0
    for latent in range(F):
        found = examples.get(latent, [])
        assert [(row["bin"], row["rank"]) for row in found] == sorted(
            (row["bin"], row["rank"]) for row in found
        )
        code_R = dense_RF[:, latent]
        rows = np.flatnonzero(code_R)
        most = code_R.max()
        for number in (TOP, 0, 1, 2):
            if number == TOP:
                inside, num = rows, 4
                order = sorted(inside, key=lambda r, c=code_R: (-c[r], at_R[r]))
            else:
                low, high = (0 if number == 2 else most / 2 ** (number + 1)), most / 2**number
                inside, num = [r for r in rows if low < code_R[r] <= high], 2
                order = sorted(inside, key=lambda r, f=latent: splitmix(f, int(at_R[r])))
            wanted, met = [], set()
            for r in order:
                document = int(text["document"][at_R[r]])
                if document not in met and len(wanted) < num:
                    met.add(document)
                    wanted.append((int(at_R[r]), float(code_R[r]), document))
            mine = [row for row in found if row["bin"] == number]
            assert [(row["at"], row["code"], row["document"]) for row in mine] == wanted
            assert [row["rank"] for row in mine] == list(range(len(mine)))
            of_hash += len(mine) * (number != TOP)
    assert of_hash > F


@pytest.mark.parametrize("column", ["tokens", "next"])
def test_tokens_of_every_latent(atlas, column):
    dense_RF, text, at_R, latents, _ = atlas
    token_R = text["token"][at_R]
    rows = np.arange(len(at_R))
    if column == "next":
        rows = [r for r in rows if at_R[r] + 1 < len(text["at"]) and text["position"][at_R[r] + 1] > 0]
        token_R = text["token"][at_R[rows] + 1]
    dense_RF, num = dense_RF[rows], SETTINGS.tokens if column == "tokens" else SETTINGS.next
    of_token = Counter(token_R.tolist())
    listed = 0
    for row in latents[:1000]:
        fires_R = dense_RF[:, row["latent"]] > 0
        both = Counter(token_R[fires_R].tolist())
        preferred = {
            token: _information(n, of_token[token], int(fires_R.sum()), len(rows))
            for token, n in both.items()
            if n / of_token[token] > fires_R.mean() * (1 + 1e-9)
        }
        found = row[column]
        listed += len(found)
        assert len(found) == min(num, len(preferred))
        for each in found:
            assert each["count"] == both[each["token"]]
            assert each["bits"] == pytest.approx(preferred[each["token"]], rel=1e-5, abs=1e-9)
        assert found == sorted(found, key=lambda each: (-each["bits"], each["token"]))
        rest = set(preferred) - {each["token"] for each in found}
        for token in rest:
            assert preferred[token] <= found[-1]["bits"] * (1 + 1e-5)
            if (both[token], of_token[token]) == (found[-1]["count"], of_token[found[-1]["token"]]):
                assert token > found[-1]["token"]
    assert listed > 1000


def _information(both, token, latent, places):
    def entropy(*counts):
        return -sum(n / places * log2(n / places) for n in counts if n)

    cells = both, token - both, latent - both, places - token - latent + both
    return entropy(token, places - token) + entropy(latent, places - latent) - entropy(*cells)


def test_windows_do_not_show(tmp_path):
    """The same bytes, however many rows a window had."""
    found = []
    for rows in (300, 77):
        index(tmp_path / str(rows), window_rows=rows)
        described(tmp_path / str(rows), 600)
        files = sorted((tmp_path / str(rows)).glob("[el]*/*"))
        found.append({file.relative_to(tmp_path / str(rows)): file.read_bytes() for file in files})
    assert len(found[0]) == 6 and found[0] == found[1]


@pytest.mark.parametrize("at_once", [1, 50, 400])
def test_codes_in_memory_do_not_show(tmp_path, monkeypatch, at_once):
    """The same bytes, however few codes are in memory: a dense latent is merged and described in pieces.

    Pieces end within documents, and groups of rows within pieces.
    """
    monkeypatch.setitem(ROW_GROUPS, POSTINGS, 70)
    monkeypatch.setitem(ROW_GROUPS, EXAMPLES, 64)
    monkeypatch.setattr("sae_dist.atlas.describe.blocks.RUN", 16)
    monkeypatch.setattr("sae_dist.atlas.describe.codes.RUN", 16)
    windows, place_R = (
        index(tmp_path),
        np.flatnonzero(pq.read_table(tmp_path / TOKENS)["state"].to_numpy() == KEPT),
    )
    values = np.arange(512).reshape(256, 2)
    extra = Extra(near=Ranked(values, (values / 4,), np.arange(256) % 3))
    found, most = [], 0
    for in_memory in (AT_ONCE, at_once):
        merge_part(tmp_path, 0, range(256), windows, place_R.astype(np.uint32), in_memory)
        describe_part(tmp_path, 0, 600, SETTINGS, extra, at_once=in_memory)
        split = [len(each.sizes) for each in blocks(tmp_path, 0, range(256), in_memory)]
        most = max(most, *split)
        found.append([part_file(tmp_path, table, 0).read_bytes() for table in (POSTINGS, LATENTS, EXAMPLES)])
    assert found[0] == found[1] and most > 2
    assert not list((tmp_path / WORK).glob("runs/*"))


def test_codes_at_an_edge_are_in_the_lower_bin():
    """Half of the greatest code is not above half of it."""
    code_P = np.float32([8, 4, np.nextafter(np.float32(4), np.float32(8)), 2, 1, 0.01])
    codes = Codes(0, 1, np.zeros(6, np.uint32), np.arange(6), code_P, np.arange(6))
    assert codes.bin_P(3).tolist() == [0, 1, 0, 2, 2, 2]


def _drawn(document_M, latents=100_000, each=4):
    """Draw places of latents that all fire at the same places with the same code."""
    places = len(document_M)
    at_P = np.tile(np.arange(places, dtype=np.uint32) * 977, latents)
    latent_P = np.repeat(np.arange(latents, dtype=np.uint32), places)
    codes = Codes(
        0, latents, latent_P, at_P, np.ones(len(at_P), np.float32), np.tile(np.uint32(document_M), latents)
    )
    return codes.examples(Settings(top=1, bins=1, each=each))[0], places


def test_draws_are_uniform():
    """Each place of a latent is drawn as often as any other, and each comes first as often."""
    found, places = _drawn(np.arange(16))
    assert np.bincount(found.latent_S).tolist() == [4] * 100_000
    place_S = found.which_S % places
    share = 4 / places
    # Of each latent 4 different places are drawn, so that counts vary less than if each were drawn alone.
    spread = 100_000 * share * (1 - share) * places / (places - 1)
    counts = np.bincount(place_S, minlength=places)
    assert chi2.sf(((counts - 100_000 * share) ** 2).sum() / spread, places - 1) > 0.01
    first = np.bincount(place_S[found.rank_S == 0], minlength=places)
    assert chi2.sf(((first - 100_000 / places) ** 2 / (100_000 / places)).sum(), places - 1) > 0.01


def test_the_first_draw_is_uniform_over_places_not_documents():
    """A document with 9 of 16 places is first in 9 of 16 draws; places of others gain in later ones."""
    document_M = [0] * 9 + list(range(1, 8))
    found, places = _drawn(document_M)
    assert np.bincount(found.latent_S).tolist() == [4] * 100_000
    place_S = found.which_S % places
    first = np.bincount(place_S[found.rank_S == 0], minlength=places)
    assert chi2.sf(((first - 100_000 / places) ** 2 / (100_000 / places)).sum(), places - 1) > 0.01
    counts = np.bincount(place_S, minlength=places)
    assert counts[9:].min() > 2 * counts[:9].max()
    assert counts[:9].sum() <= 100_000


def test_hashes_of_different_places_differ():
    latent_P = np.repeat(np.arange(1000, dtype=np.uint32), 1000)
    at_P = np.tile(np.arange(1000, dtype=np.uint32), 1000)
    hash_P = hash64(latent_P, at_P)
    assert len(np.unique(hash_P)) == len(hash_P)
    assert hash64(np.uint32([7]), np.uint32([9]))[0] == splitmix(7, 9)


@pytest.fixture
def planted(tmp_path):
    """Latents 0 to 2 that fire exactly on token 777, on what follows it and on what is before it."""
    rng = np.random.default_rng(5)
    token = rng.integers(1, 700, 20_000)
    position = np.arange(20_000) % 50
    token[rng.choice(np.flatnonzero((position > 3) & (position < 47)), 40, replace=False)] = 777
    state = (position == 0).astype(np.uint8)
    columns = [np.arange(20_000), token, np.arange(20_000) // 100, position, state]
    write_table(
        tmp_path / TOKENS,
        pa.table(
            [pa.array(each, f.type) for each, f in zip(columns, TOKENS_SCHEMA, strict=True)],
            schema=TOKENS_SCHEMA,
        ),
        row_group=64,
    )
    at_R = np.flatnonzero(state == KEPT).astype(np.uint32)
    rows = [np.flatnonzero(np.isin(at_R, np.flatnonzero(token == 777) + by)) for by in (0, 1, -1)]
    latent_P = np.repeat(np.arange(3), [len(each) for each in rows])
    window = tmp_path / WORK / "codes" / "window-0.npy"
    write_window(window, latent_P, np.concatenate(rows), np.ones(len(latent_P)))
    merge_part(tmp_path, 0, range(300), [window], at_R)
    return described(tmp_path, part_latents(300))[0], token, at_R, position


def test_a_planted_token_stands_first(planted):
    """Bits are the token's entropy where a latent fires on it and nowhere else."""
    latents, token, at_R, position = planted

    def entropy(n, places):
        return _information(n, n, n, places)

    num = int((token[at_R] == 777).sum())
    assert num == 40
    [first, *rest] = latents[0]["tokens"]
    assert (first["token"], first["count"]) == (777, num)
    assert first["bits"] == pytest.approx(entropy(num, len(at_R)), rel=1e-6)
    assert all(each["bits"] < first["bits"] / 10 for each in rest)
    assert latents[0]["next"][0]["token"] != 777 and latents[0]["next"][0]["bits"] < first["bits"] / 10
    before = latents[2]
    followed = int((position[at_R] < 49).sum())
    assert (before["next"][0]["token"], before["next"][0]["count"]) == (777, num)
    assert before["next"][0]["bits"] == pytest.approx(entropy(num, followed), rel=1e-6)
    for other in (latents[1], latents[2]):
        assert all(each["token"] != 777 or each["count"] < 3 for each in other["tokens"])


def test_text_is_read_over_batches(tmp_path, monkeypatch):
    """Followers and counts are those of the whole, wherever a batch ends."""
    monkeypatch.setattr("sae_dist.atlas.describe.text.BATCH", 7)
    rng = np.random.default_rng(0)
    token, position = rng.integers(0, 9, 100), np.arange(100) % 10
    state = rng.integers(0, 3, 100)
    columns = [np.arange(100), token, np.arange(100) // 20, position, state]
    arrays = [pa.array(each, f.type) for each, f in zip(columns, TOKENS_SCHEMA, strict=True)]
    write_table(tmp_path / TOKENS, pa.table(arrays, schema=TOKENS_SCHEMA), row_group=7)
    text = Text.open(tmp_path)
    follower = [int(token[n + 1]) if n + 1 < 100 and position[n + 1] > 0 else NO_TOKEN for n in range(100)]
    assert text.follower_T.tolist() == follower
    assert text.token_T.tolist() == token.tolist()
    kept = np.flatnonzero(state == KEPT)
    assert text.kept == len(kept)
    assert text.count_V.tolist() == [int((token[kept] == t).sum()) for t in range(len(text.count_V))]
    assert int(text.followed_V.sum()) == sum(follower[n] != NO_TOKEN for n in kept)


def test_what_is_given_stands_in_its_columns(tmp_path):
    index(tmp_path, num_latents=256)
    ids, values = np.arange(512).reshape(256, 2), np.arange(512).reshape(256, 2) / 4
    up = Ranked(ids, (values,))
    together = Ranked(ids, (values, values + 1), np.arange(256) % 3)
    rows, _ = described(tmp_path, 256, extra=Extra(up=up, together=together))
    assert rows[3]["up"] == [{"token": 6, "logit": 1.5}, {"token": 7, "logit": 1.75}]
    assert [len(row["together"]) for row in rows] == [n % 3 for n in range(256)]
    assert rows[4]["together"] == [{"latent": 8, "share": 2.0, "lift": 3.0}]
    assert rows[4]["near"] is None and rows[4]["down"] is None
