"""Statistics of codes, beside those of all codes held at once."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_dist.core.errors import ConfigError
from sae_dist.export import statistics
from sae_dist.export.exported import SparseCodes
from sae_dist.export.saelens import WEIGHTS, export_saelens
from sae_dist.export.statistics import CODES, CodeStatistics, CodeSums, load_statistics
from tests.helpers.dictionaries import F, random_sae, to_dense


def sums_of(sae, x: torch.Tensor, batch: int) -> tuple[CodeSums, torch.Tensor]:
    """The sums over batches of rows, and all codes [B, F]."""
    sums, parts = CodeSums(sae.num_latents, torch.device("cpu")), []
    for rows in x.split(batch):
        z = (rows - sae.b_dec_E) @ sae.W_enc_FD.T + sae.b_enc_F
        top = z.topk(sae.k)
        code = torch.zeros_like(z).scatter_(1, top.indices, top.values.relu())
        row, latent = code.nonzero(as_tuple=True)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), (code > 0).sum(1).cumsum(0)[:-1]])
        found = SparseCodes(latent, code[row, latent], offsets)
        assert to_dense(found, sae.num_latents).equal(code)
        sums.add(found)
        parts.append(code)
    return sums, torch.cat(parts)


def nth(code: torch.Tensor) -> torch.Tensor:
    """The greatest code that a thousandth of each latent's codes reach [F]."""
    ordered, count = code.sort(0, descending=True).values, (code > 0).sum(0)
    at = ((count + 999) // 1000 - 1).clamp(min=0)
    return ordered.gather(0, at[None])[0]


@pytest.mark.parametrize("kept", [1 << 20, 100])
def test_statistics_are_those_of_all_codes(monkeypatch, kept):
    monkeypatch.setattr(statistics, "SMALLEST_CODES", kept)
    sae = random_sae("topk")
    x = torch.randn(900, sae.width, generator=torch.Generator().manual_seed(1)) + sae.b_dec_E
    sums, code = sums_of(sae, x, batch=100)
    found = sums.statistics()
    fires = code > 0
    assert int(fires.sum(0).max()) <= 1000
    torch.testing.assert_close(found.rate_F, fires.float().mean(0))
    torch.testing.assert_close(found.mean_F, code.sum(0) / fires.sum(0).clamp(min=1))
    assert found.max_F.equal(code.max(0).values) and found.p999_F.equal(found.max_F) and found.rows == 900
    smallest = torch.where(fires, code, torch.inf).min(1).values[:kept]
    assert found.threshold == smallest[smallest.isfinite()].median()


@pytest.mark.parametrize("count", [3000, 20_000])
def test_percentiles_are_as_near_as_they_say(count):
    draw = torch.Generator().manual_seed(count)
    noise = torch.randn(count, 60, generator=draw)
    code = torch.cat([noise[:, :20].exp(), noise[:, 20:40].abs(), 1 + 0.3 * noise[:, 40:].abs()], 1)
    code *= torch.logspace(-0.7, 0.7, 60)
    sums = CodeSums(60, torch.device("cpu"))
    for rows in code.split(1000):
        latent = torch.arange(60).repeat(len(rows))
        sums.add(SparseCodes(latent, rows.reshape(-1), 60 * torch.arange(len(rows))))
    found, exact = sums.statistics().p999_F, nth(code)
    error = (found / exact - 1).abs()
    assert float(error.max()) < 2 ** (1 / 8) - 1
    assert 0.001 < float(error.mean()) < 0.02, "below: it is no estimate, and nothing was tested"


def test_of_very_many_latents_the_greatest_code_stands_for_the_percentile(monkeypatch):
    monkeypatch.setattr(statistics, "LARGEST_HISTOGRAM", 3)
    sums = CodeSums(4, torch.device("cpu"))
    value = torch.arange(1.0, 5001)
    sums.add(SparseCodes(torch.zeros(5000, dtype=torch.int64), value, torch.arange(5000)))
    assert sums.statistics().p999_F.tolist() == [5000.0, 0, 0, 0]


def test_nothing_fired_and_nothing_seen():
    sums = CodeSums(3, torch.device("cpu"))
    assert sums.statistics().rows == 0
    none = torch.zeros(0, dtype=torch.int64)
    sums.add(SparseCodes(none, none.float(), torch.zeros(7, dtype=torch.int64)))
    found = sums.statistics()
    assert found.rows == 7 and found.threshold == 0
    assert not any(each.any() for each in (found.rate_F, found.mean_F, found.p999_F, found.max_F))


def written(folder) -> CodeStatistics:
    export_saelens(folder, random_sae("topk"))
    each = torch.rand(4, F)
    found = CodeStatistics(*each, threshold=1.5, rows=123)
    found.save(folder)
    return found


def test_the_file_is_read_as_it_was_written(tmp_path):
    wrote, read = written(tmp_path), load_statistics(tmp_path, F)
    assert read is not None and (read.threshold, read.rows) == (1.5, 123)
    for name in ("rate_F", "mean_F", "p999_F", "max_F"):
        assert getattr(read, name).equal(getattr(wrote, name))


def test_statistics_of_older_weights_are_none(tmp_path):
    written(tmp_path)
    late = (tmp_path / CODES).stat().st_mtime + 10
    os.utime(tmp_path / WEIGHTS, (late, late))
    assert load_statistics(tmp_path, F) is None


@pytest.mark.parametrize("damage", ["cut", "of another dictionary", "without a tensor"])
def test_a_damaged_file_is_named(tmp_path, damage):
    written(tmp_path)
    path = tmp_path / CODES
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    else:
        tensors = load_file(path)
        if damage == "without a tensor":
            del tensors["p999"]
        save_file(tensors, path)
    width = F + 1 if damage == "of another dictionary" else F
    with pytest.raises(ConfigError, match=CODES):
        load_statistics(tmp_path, width)
