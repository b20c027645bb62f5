"""A report's latents from an atlas, without a pass over text; that of another dictionary is left alone."""

import numpy as np
import pytest

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, save_config
from sae_dist.core.errors import ConfigError
from sae_dist.core.sums import checksum
from sae_dist.evaluation.report import charted
from sae_dist.evaluation.report.cards import parts
from sae_dist.evaluation.report.page import report_run
from sae_dist.export.saelens import WEIGHTS, export_saelens
from tests.helpers.described import described
from tests.helpers.dictionaries import random_sae

F = 300


def no_pass(*_):
    raise AssertionError("text was read")


@pytest.fixture
def run(tmp_path):
    cfg = RunConfig(device="cpu", kernels="torch", name="a-run")
    cfg.sae.kind, cfg.sae.num_latents, cfg.sae.k, cfg.optim.kind = "topk", F, 8, "adam"
    cfg.llm.name, cfg.llm.dtype, cfg.tokens.kind, cfg.activations.kind = "embedded", "float32", "text", "llm"
    cfg.hook = "layers.1:out"
    place = tmp_path / "a-run"
    sae = random_sae("topk", F=F, D=256, k=8)
    sae.metadata.update({"hook_name": "layers.1:out", "model_name": "embedded"})
    export_saelens(place / "export", sae)
    save_config(resolve(cfg, None, F), place / "config.yaml")
    described(place / "atlas", F, checksum(place / "export" / WEIGHTS)["sha256"], documents=60)
    return place


def test_thirty_latents_are_those_of_the_atlas(run, monkeypatch):
    monkeypatch.setattr(charted, "read_latents", no_pass)
    page = report_run(run).read_text()
    atlas = Atlas.open(run)
    found = charted.of_atlas(run, atlas)
    assert len(found.firings) == 30 and found.rows == atlas.facts["kept"] and found.no_text is None
    assert np.allclose(found.rate_F.numpy(), atlas.rates)
    for latent, firing in found.firings.items():
        at, code = atlas.codes(latent)
        assert firing.fired == len(at) and firing.total == pytest.approx(code.sum(dtype=np.float64))
        counts, end = firing.histogram.shown()
        assert counts == np.histogram(code, len(counts), (0, end))[0].tolist() and end == code.max()
        codes = dict(zip(at.tolist(), code.tolist(), strict=True))
        assert firing.top[0].code == code.max()
        for each in [*firing.top, *(one for _, own in firing.drawn() for one in own)]:
            assert each.codes[each.at] == each.code == codes[each.row]
            places = range(each.row - each.at, each.row - each.at + len(each.ids))
            assert each.codes == tuple(codes.get(place, 0.0) for place in places)
    (first, *_) = [card for part in parts(found) for card in part.cards]
    assert f'id="latent-{first.number}"' in page and first.drawn[0][0] in page
    assert "activations of its atlas (random tokens)" in page and "by range of its code" in page
    assert [token for token, _ in first.promoted] == ["#", "$"]


def test_an_atlas_of_another_dictionary_is_left_alone(run, monkeypatch, capsys):
    monkeypatch.setattr(charted, "read_latents", lambda cfg, folder: "read from text")
    sae = random_sae("relu", F=F, D=256)
    export_saelens(run / "export", sae)
    assert charted.latents_of(None, run) == "read from text"
    assert "is another dictionary; make the atlas again; the report reads held-out" in capsys.readouterr().err
    (run / "atlas" / "atlas.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        charted.latents_of(None, run)
    (run / "atlas" / "atlas.json").unlink()
    assert charted.latents_of(None, run) == "read from text" and capsys.readouterr().err == ""
