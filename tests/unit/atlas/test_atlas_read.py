"""An atlas that is opened: each latent's rows, contexts and codes are those of its tables."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from sae_dist.atlas.manifest import SEAL, footer_sum, read_manifest, sealed_json
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.schema import LATENTS, MANIFEST, POSTINGS, TOKENS, TOP, WORK, part_file, parts
from sae_dist.atlas.tables import write_table
from sae_dist.core.errors import ConfigError
from tests.helpers.described import described

F = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return described(tmp_path_factory.mktemp("run") / "atlas", F)


@pytest.fixture(scope="module")
def atlas(folder):
    return Atlas.open(folder)


def test_a_latent_is_its_row(folder, atlas):
    for part in range(parts(F)):
        for row in pq.read_table(part_file(folder, LATENTS, part)).to_pylist()[::37]:
            found = atlas.latent(row["latent"])
            named = (found.latent, found.count, found.most)
            assert named == (row["latent"], row["count"], row["most"] or 0)
            assert found.histogram == tuple(row["histogram"])
            assert [(each.token, each.bits) for each in found.tokens] == [
                (each["token"], each["bits"]) for each in row["tokens"]
            ]
            assert found.lens_up is None and found.up[0].logit == 1.5


def test_codes_and_rates_are_those_of_the_postings(folder, atlas):
    latent_P, at_P, code_P = [], [], []
    for part in range(parts(F)):
        table = pq.read_table(part_file(folder, POSTINGS, part))
        latent_P += table["latent"].to_pylist()
        at_P += table["at"].to_pylist()
        code_P += table["code"].to_pylist()
    count_F = np.bincount(latent_P, minlength=F)
    assert np.array_equal(atlas.counts, count_F)
    assert np.allclose(atlas.rates, count_F / atlas.facts["kept"])
    for latent in (0, 1, 255, 256, 417, F - 1):
        at, code = atlas.codes(latent)
        mine = np.array(latent_P) == latent
        assert np.array_equal(at, np.array(at_P)[mine]) and np.array_equal(code, np.array(code_P)[mine])


def test_a_context_is_of_one_segment_and_has_the_codes_of_its_latent(folder, atlas):
    tokens = pq.read_table(folder / TOKENS).to_pydict()
    for latent in (0, 3, 100):
        at, code = atlas.codes(latent)
        codes = dict(zip(at.tolist(), code.tolist(), strict=True))
        assert atlas.examples(latent)
        for example in atlas.examples(latent):
            context = example.context
            places = [each.at for each in context.tokens]
            assert context.at in places and example.code == codes[context.at]
            begin = context.at - tokens["position"][context.at]
            wanted = list(range(max(begin, context.at - 16), places[-1] + 1))
            assert places == wanted and len(places) <= 25
            end = places[-1] + 1
            whole = end == len(tokens["at"]) or tokens["position"][end] == 0 or end == context.at + 9
            assert whole and all(tokens["position"][each] for each in places[1:])
            assert [each.id for each in context.tokens] == [tokens["token"][each] for each in places]
            assert [each.code for each in context.tokens] == [codes.get(each, 0.0) for each in places]
            assert context.document == tokens["document"][context.at]


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_groups_of_any_size_say_the_same(folder, atlas, tmp_path, rows):
    for path in folder.rglob("*.parquet"):
        (tmp_path / path.relative_to(folder)).parent.mkdir(exist_ok=True)
        write_table(tmp_path / path.relative_to(folder), pq.read_table(path), rows)
    manifest = read_manifest(folder)
    replace(manifest, footers={name: footer_sum(tmp_path / name) for name in manifest.files}).write(tmp_path)
    other = Atlas.open(tmp_path)
    for latent in (0, 1, 100, 255, 256, F - 1):
        assert other.latent(latent) == atlas.latent(latent)
        assert other.examples(latent) == atlas.examples(latent)
        assert np.array_equal(other.codes(latent), atlas.codes(latent))
    assert np.array_equal(other.rates, atlas.rates)
    assert other.find(token=2).records == atlas.find(token=2).records


def test_the_greatest_codes_come_first(atlas):
    found = atlas.examples(2)
    top = [each.code for each in found if each.bin == TOP]
    assert top and top == sorted(top, reverse=True) and found[0].code == atlas.latent(2).most
    assert [each.bin for each in found] == sorted(each.bin for each in found)


def test_a_silent_latent_has_nothing(atlas):
    silent = F - 1
    assert atlas.latent(silent).count == 0 and atlas.examples(silent) == []
    assert [len(each) for each in atlas.codes(silent)] == [0, 0]


@pytest.mark.parametrize("latent", [-1, F, 1.5, True])
def test_a_latent_that_does_not_exist(atlas, latent):
    with pytest.raises(ConfigError, match=f"latent {latent} does not exist; the latents are 0 to {F - 1}"):
        atlas.latent(latent)


def test_sql_reads_all_tables(atlas):
    found = atlas.sql("select count(*) as n, sum(count) as fired from latents").to_pylist()
    assert found == [{"n": F, "fired": int(atlas.counts.sum())}]
    for name in ("tokens", "documents", "postings", "examples"):
        assert atlas.sql(f"select count(*) as n from {name}")["n"][0].as_py() > 0


@pytest.mark.parametrize(
    "query",
    [
        "select * from read_text('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from read_csv('/etc/passwd')",
        "select * from glob('/etc/*')",
        "copy (select 1) to '{out}'",
        "copy (select 1) to '{tokens}'",
        "attach '{out}' as a",
        "create table a as select 1",
        "insert into tokens select * from tokens",
        "install httpfs",
        "load httpfs",
        "set enable_external_access = true",
        "pragma database_list",
        "select 1; select 2",
        "select * from query('copy (select 1) to ''{out}''')",
        "select * from secret_of_the_caller",
        "select getenv('HOME')",
        "export database '{out}'",
        "select * from postings",
        "",
        "select",
    ],
)
def test_sql_reaches_nothing_else(folder, atlas, query, tmp_path):
    secret_of_the_caller = pq.read_table(folder / TOKENS)
    before = (folder / TOKENS).read_bytes()
    out = tmp_path / "out"
    with pytest.raises(ConfigError) as caught:
        atlas.sql(query.format(out=out, tokens=(folder / TOKENS).absolute()), rows=100)
    assert "\n" not in str(caught.value) and "root:" not in str(caught.value)
    assert not out.exists() and (folder / TOKENS).read_bytes() == before
    assert len(secret_of_the_caller)


def test_sql_is_given_up(atlas):
    with pytest.raises(ConfigError, match="took longer than 0.2 s"):
        atlas.sql("select count(*) from range(10000000000) a, range(1000) b", seconds=0.2)


def test_a_run_without_an_atlas(tmp_path):
    with pytest.raises(ConfigError, match="has no atlas; make one: sae-dist atlas "):
        Atlas.open(tmp_path)
    (tmp_path / "atlas" / WORK).mkdir(parents=True)
    with pytest.raises(ConfigError, match="is unfinished; go on with it: sae-dist atlas "):
        Atlas.open(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        Atlas.open(tmp_path / "nowhere")


def test_an_atlas_is_found_from_its_run_and_its_export(folder):
    (folder.parent / "export").mkdir(exist_ok=True)
    for where in (folder, folder.parent, folder.parent / "export", str(folder)):
        assert Atlas.open(where).folder == folder


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"num_latents": 0},
        {"num_latents": 2**60},
        {"kept": 10**9},
        {"tokens": True},
        {"k": "8"},
    ],
)
def test_a_manifest_that_is_wrong(tmp_path, folder, change):
    facts = json.loads((folder / MANIFEST).read_text())
    del facts[SEAL]
    (tmp_path / MANIFEST).write_text(sealed_json(facts | change))
    with pytest.raises(ConfigError, match="is damaged|has version") as caught:
        Atlas.open(tmp_path)
    assert "\n" not in str(caught.value)


def test_opening_needs_no_torch(folder):
    code = (
        "import sys; from sae_dist.atlas.read.atlas import Atlas; a = Atlas.open(sys.argv[1]); "
        "a.latent(3); a.codes(3); a.sql('select 1'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
