"""Latents that fire together, near decoder rows and logit effects, against plain loops over all of them."""

from math import log2

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sae_dist.atlas.describe import effects, near, products
from sae_dist.atlas.describe.blocks import blocks
from sae_dist.atlas.describe.effects import top_logits
from sae_dist.atlas.describe.lists import Ranked
from sae_dist.atlas.describe.near import near_rows, why_not
from sae_dist.atlas.describe.together import Window, by_place, latent_counts, together
from sae_dist.atlas.postings import NO_PLACE, merge_part, read_window, write_window
from sae_dist.atlas.schema import KEPT, POSTINGS, TOKENS, WORK, part_file, parts
from tests.helpers.atlas import index
from tests.helpers.plain_hash import splitmix

F = 600


def listed(ranked: Ranked, row: int):
    """The entries of one latent's list."""
    size = ranked.id_fN.shape[1] if ranked.size_f is None else ranked.size_f[row]
    columns = (each[row, :size].tolist() for each in (ranked.id_fN, *ranked.values))
    return list(zip(*columns, strict=True))


@pytest.fixture(scope="module", params=["whole", "by two ranks"])
def atlas(request, tmp_path_factory):
    """An atlas whose windows are one file each, or one for each of two ranks' latents."""
    folder = tmp_path_factory.mktemp("atlas")
    windows = [[path] for path in index(folder, F, 300)]
    table = pq.read_table(folder / TOKENS)
    at_R = np.flatnonzero(table["state"].to_numpy() == KEPT).astype(np.uint32)
    if request.param == "by two ranks":
        for files in windows:
            found = read_window(files[0])
            for rank, mine in enumerate((found["latent"] % 2 == 0, found["latent"] % 2 == 1)):
                files.append(files[0].with_name(f"{files[0].stem}-of-{rank}.npy"))
                write_window(files[-1], *(found[mine][name] for name in ("latent", "row", "code")))
            del files[0]
    for number, files in enumerate(windows):
        by_place(folder, number, files, at_R)
    return folder, [Window.open(folder, number) for number in range(len(windows))], len(at_R)


def test_latents_that_fire_together(atlas):
    folder, windows, kept = atlas
    places, latents_at = {}, {}
    for part in range(parts(F)):
        table = pq.read_table(part_file(folder, POSTINGS, part))
        for latent, at in zip(table["latent"].to_pylist(), table["at"].to_pylist(), strict=True):
            places.setdefault(latent, []).append(at)
            latents_at.setdefault(at, []).append(latent)
    count_F = latent_counts(folder, F, range(parts(F)))
    assert count_F.tolist() == [len(places.get(latent, [])) for latent in range(F)]
    entries = 0
    for part in range(parts(F)):
        found = together(folder, part, windows, count_F, kept, drawn=6, num=4)
        for row in range(len(found.id_fN)):
            latent = 256 * part + row
            looked = sorted(places.get(latent, []), key=lambda at, f=latent: splitmix(f, at))[:6]
            seen = {}
            for at in looked:
                for other in latents_at[at]:
                    seen[other] = seen.get(other, 0) + (other != latent)
            wanted = []
            for other, times in seen.items():
                share, rate = times / len(looked), len(places[other]) / kept
                if times >= 2 and share > rate:
                    strength = share * log2(share / rate)
                    strength += (1 - share) * log2((1 - share) / (1 - rate)) if share < 1 else 0
                    wanted.append((-strength * len(looked), other, share, share / rate))
            wanted.sort()
            entries += len(wanted[:4])
            got = listed(found, row)
            assert [(share, lift) for _, share, lift in got] == [
                pytest.approx((share, lift), rel=1e-6) for _, _, share, lift in wanted[:4]
            ]
            assert [other for other, _, _ in got] == [other for _, other, _, _ in wanted[:4]]
    assert entries > F / 4


def test_a_pair_that_always_fires_together_is_found(tmp_path):
    """Of rare latents 3 and 4 each is the other's first; 0 fires everywhere, and is nobody's."""
    rng = np.random.default_rng(0)
    row_R = np.arange(1000)
    pair = np.sort(rng.choice(1000, 20, replace=False))
    alone = np.setdiff1d(np.sort(rng.choice(1000, 30, replace=False)), pair)
    latent_P = np.concatenate([np.zeros(1000), np.full(20, 3), np.full(20, 4), np.full(len(alone), 5)])
    rows = np.concatenate([row_R, pair, pair, alone])
    at_R = np.where(row_R % 100 == 99, NO_PLACE, row_R + 7).astype(np.uint32)
    path = tmp_path / WORK / "codes" / "window-0.npy"
    write_window(path, latent_P, rows, np.ones(len(rows)))
    merge_part(tmp_path, 0, range(300), [path], at_R)
    by_place(tmp_path, 0, [path], at_R)
    by_place(tmp_path, 1, [], at_R)
    windows = [Window.open(tmp_path, number) for number in (0, 1)]
    count_F = latent_counts(tmp_path, 300, range(1))
    found = together(tmp_path, 0, windows, count_F, 990, drawn=16, num=5)
    there = int((at_R[pair] != NO_PLACE).sum())
    for latent, other in ((3, 4), (4, 3)):
        [(first, share, lift)] = listed(found, latent)
        assert (first, share) == (other, 1.0) and lift == pytest.approx(990 / there)
    assert listed(found, 5) == [] and listed(found, 17) == []


@pytest.mark.parametrize("part", [0, 1])
def test_latents_in_memory_do_not_show(atlas, monkeypatch, part):
    """Nor does it show that a dense latent, of which part 0 has some, is read in pieces."""
    folder, windows, kept = atlas
    count_F = latent_counts(folder, F, range(parts(F)))
    whole = together(folder, part, windows, count_F, kept, drawn=6, num=4)
    monkeypatch.setattr("sae_dist.atlas.describe.together.LATENTS_AT_ONCE", 10)
    monkeypatch.setattr("sae_dist.atlas.describe.blocks.RUN", 16)
    latents = range(256 * part, 256 * part + 256)
    assert any(each.is_split for each in blocks(folder, part, latents, 50)) == (part == 0)
    few = together(folder, part, windows, count_F, kept, drawn=6, num=4, at_once=50)
    assert [listed(whole, row) for row in range(256)] == [listed(few, row) for row in range(256)]


@pytest.mark.parametrize("tile", [7, 64, 8192])
def test_near_rows_are_those_of_all_cosines(tile):
    generator = torch.Generator().manual_seed(0)
    W_FE = torch.randn(300, 12, generator=generator)
    W_FE[:, 0] *= 3
    W_FE[40] = 2.5 * W_FE[10]
    W_FE[200] = 4 * W_FE[10]
    W_FE[50] = W_FE[51] = 0
    unit = W_FE.double().numpy()
    norm = np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = (unit / np.where(norm == 0, 1, norm)) @ (unit / np.where(norm == 0, 1, norm)).T
    for latents in (range(0, 256), range(256, 300)):
        found = near_rows(W_FE, latents, 5, other_tile=tile)
        for row, latent in enumerate(latents):
            others = [n for n in range(300) if n != latent and norm[n] > 0]
            others.sort(key=lambda n, f=latent: (-np.float32(cosine[f, n]), n))
            wanted = [(n, float(np.float32(cosine[latent, n]))) for n in others[:5]] if norm[latent] else []
            assert [n for n, _ in listed(found, row)] == [n for n, _ in wanted]
            assert listed(found, row) == [(n, pytest.approx(each, abs=1e-6)) for n, each in wanted]
    assert [n for n, _ in listed(near_rows(W_FE, range(0, 256), 5), 10)[:2]] == [40, 200]


def test_few_rows_have_few_that_are_near():
    """A row of zeros is none of them, and has none."""
    found = near_rows(torch.eye(4)[[0, 1, 2, 3, 3]] * torch.tensor([1, 1, 1, 1, 0])[:, None], range(5), 10)
    assert listed(found, 1) == [(0, 0.0), (2, 0.0), (3, 0.0)]
    assert listed(found, 4) == []


def test_near_rows_cost_is_told_before():
    assert why_not(1 << 17, 512, torch.device("cpu")) is None
    assert "multiplications" in why_not(1 << 20, 512, torch.device("cpu"))
    assert why_not(1 << 20, 4096, torch.device("cuda")) is None


@pytest.mark.parametrize("tile", [13, 8192])
@pytest.mark.parametrize("lens", [False, True])
def test_logits_are_those_of_all_tokens(tile, lens):
    generator = torch.Generator().manual_seed(1)
    W_U_VH, row_fE, J_HE = (torch.randn(*shape, generator=generator) for shape in ((90, 8), (40, 6), (8, 6)))
    W_U_VH[30] = W_U_VH[70]
    if not lens:
        row_fE, J_HE = torch.randn(40, 8, generator=generator), None
    up, down = top_logits(row_fE, W_U_VH, 45, J_HE, tile=tile)
    rows = row_fE.double() if J_HE is None else row_fE.double() @ J_HE.double().T
    logit_fV = (rows @ W_U_VH.double().T).numpy().astype(np.float32)
    for sign, found in ((-1, up), (1, down)):
        for row in range(40):
            order = sorted(range(90), key=lambda v, r=row, s=sign: (s * logit_fV[r, v], v))[:45]
            assert [v for v, _ in listed(found, row)] == order
            assert [each for _, each in listed(found, row)] == pytest.approx(logit_fV[row, order], rel=1e-5)
    assert len(listed(top_logits(row_fE, W_U_VH[:5], 10, J_HE)[0], 0)) == 2


def test_lists_do_not_depend_on_how_rows_are_cut(monkeypatch):
    """Blocks of rows and threads change nothing, to the bit."""
    generator = torch.Generator().manual_seed(3)
    W_FE, W_U_VH = torch.randn(300, 24, generator=generator), torch.randn(500, 24, generator=generator)
    whole = [near_rows(W_FE, range(256), 6), *top_logits(W_FE, W_U_VH, 6)]
    for module in (near, effects):
        monkeypatch.setattr(module, "BLOCK", 100)
        monkeypatch.setattr(module, "OWN_TILE", 33)
    monkeypatch.setattr(products, "EXACT_BYTES", 1)
    cut = [
        near_rows(W_FE, range(256), 6, other_tile=50),
        *top_logits(W_FE, W_U_VH, 6, tile=77),
    ]
    for one, other in zip(whole, cut, strict=True):
        assert np.array_equal(one.id_fN, other.id_fN)
        assert np.array_equal(one.values[0], other.values[0])
