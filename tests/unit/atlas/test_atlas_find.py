"""Finding latents: every way against brute force over the whole text and all codes."""

import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from sae_dist.atlas.find.direction import nearest
from sae_dist.atlas.find.text import TextCodes
from sae_dist.atlas.read.atlas import Atlas
from sae_dist.atlas.schema import KEPT, POSTINGS, TOKENS, part_file, parts
from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.facts import llm_facts
from sae_dist.tokens.decoder import Decoder
from tests.helpers.described import described

F = 600


@pytest.fixture(scope="module")
def decoder():
    return Decoder(llm_facts(LlmConfig(name="embedded"), "layers.1:out")[0])


@pytest.fixture(scope="module")
def atlas(tmp_path_factory, decoder):
    return Atlas.open(described(tmp_path_factory.mktemp("run") / "atlas", F, documents=120), decoder)


@pytest.fixture(scope="module")
def dense(atlas):
    """Codes [places, F], and the columns of the text."""
    text = pq.read_table(atlas.folder / TOKENS).to_pydict()
    code_TF = np.zeros((len(text["at"]), F), np.float32)
    for part in range(parts(F)):
        table = pq.read_table(part_file(atlas.folder, POSTINGS, part))
        code_TF[table["at"].to_numpy(), table["latent"].to_numpy()] = table["code"].to_numpy()
    return code_TF, {name: np.array(each) for name, each in text.items()}


def bits(fires, there):
    """The mutual information of two columns of truth, in bits."""
    total = 0.0
    for a in (fires, ~fires):
        for b in (there, ~there):
            both, one, other = np.mean(a & b), np.mean(a), np.mean(b)
            total += both * np.log2(both / (one * other)) if both else 0.0
    return total


def ranked(code_TF, there_T, kept_T, top):
    """Latents that prefer some places, with the most mutual information first."""
    fires, there = code_TF[kept_T] > 0, there_T[kept_T]
    found = []
    for latent in range(F):
        if fires[there, latent].mean() > fires[:, latent].mean():
            found.append((-bits(fires[:, latent], there), latent))
    return sorted(found)[:top]


def same(found, wanted):
    assert found.latents == [latent for _, latent in wanted]
    assert [each.score for each in found] == pytest.approx([-value for value, _ in wanted], abs=1e-12)


@pytest.mark.parametrize("token", [1, 2, 40])
def test_by_a_token(atlas, dense, token):
    code_TF, text = dense
    there_T = text["token"] == token
    found = atlas.find(token=token, top=12)
    same(found, ranked(code_TF, there_T, text["state"] == KEPT, 12))
    assert found[0].about["of"] == int((there_T & (text["state"] == KEPT)).sum())
    assert "exact, by all postings" in found.how


def test_by_a_token_in_the_lists(atlas):
    exact = {each.latent: each.score for each in atlas.find(token=2, top=F)}
    listed = atlas.find(token=2, top=F, exact=False)
    assert len(listed) and "in a latent's list" in listed.how
    for each in listed:
        assert each.score == pytest.approx(exact[each.latent], rel=1e-4)
        assert 2 in [one.token for one in atlas.latent(each.latent).tokens]
    assert [each.score for each in listed] == sorted((each.score for each in listed), reverse=True)
    count = sum(2 in [one.token for one in atlas.latent(latent).tokens] for latent in range(F))
    assert len(listed) == count


def occurrences(text, ids):
    there_T = np.zeros(len(text["token"]), bool)
    for at in range(len(there_T) - len(ids) + 1):
        window = slice(at, at + len(ids))
        if text["token"][window].tolist() == ids and all(text["position"][at + 1 : at + len(ids)]):
            there_T[window] = True
    return there_T


@pytest.mark.parametrize("ids", [[2, 3], [2, 2, 2]])
def test_by_several_tokens_in_a_row(atlas, dense, ids, monkeypatch):
    code_TF, text = dense
    monkeypatch.setattr(atlas.words, "ids", lambda _: ids)
    there_T = occurrences(text, ids)
    assert there_T.sum() > 4
    same(atlas.find(token="any", top=9), ranked(code_TF, there_T, text["state"] == KEPT, 9))


def test_a_row_of_tokens_stays_in_its_segment(atlas, dense, monkeypatch):
    text = dense[1]["token"]
    assert ((text[:-1] == 2) & (text[1:] == 0)).any(), "0 begins every segment"
    monkeypatch.setattr(atlas.words, "ids", lambda _: [2, 0])
    with pytest.raises(ConfigError, match="nowhere in"):
        atlas.find(token="any")


def test_words_are_looked_up_without_a_model(atlas, dense, decoder):
    code_TF, text = dense
    words = decoder.token(70).strip()
    found = atlas.find(words, top=7)
    assert "The text was not encoded: no model was given" in found.how and "in any case" in found.how
    forms = [each for w in (words, words.lower(), words.title(), words.upper()) for each in (w, f" {w}")]
    there_T = np.zeros(len(text["token"]), bool)
    for each in forms:
        there_T |= occurrences(text, atlas.words.ids(each))
    same(found, ranked(code_TF, there_T, text["state"] == KEPT, 7))


def test_what_occurs_nowhere(atlas):
    with pytest.raises(ConfigError, match="nowhere in the .* tokens of the atlas: the token"):
        atlas.find(token=499_999)
    with pytest.raises(ConfigError, match="nowhere in .*; and the text was not encoded: no model"):
        atlas.find("zqzqzq")


def test_words_that_never_stand_in_a_row_are_looked_up_each(atlas):
    found = atlas.find("# zqz# $")
    assert "any of the words of '# zqz# $'" in found.how
    alone = atlas.find("#").hits[0].about["of"] + atlas.find("$").hits[0].about["of"]
    assert found[0].about["of"] == alone


def test_by_other_latents(atlas, dense):
    code_TF, text = dense
    there_T = (code_TF[:, 3] > 0) & (code_TF[:, 0] > 0)
    found = atlas.find(together=[3, 0], top=8)
    code_TF = code_TF.copy()
    code_TF[:, [0, 3]] = 0
    same(found, ranked(code_TF, there_T, text["state"] == KEPT, 8))
    first = found[0]
    share = (code_TF[there_T, first.latent] > 0).mean()
    assert first.about["share"] == pytest.approx(share)
    assert first.about["lift"] == pytest.approx(share / atlas.rates[first.latent])
    listed = atlas.find(together=3, exact=False)
    assert listed.latents == [4, 5] and "from its list" in listed.how
    with pytest.raises(ConfigError, match="latent 599 never fires"):
        atlas.find(together=F - 1)


def contexts_with(atlas, pattern):
    """Whether the contexts of every place, and of every latent's examples, have a match."""
    import re

    spans = {}
    text = atlas.places.stretch(0, len(atlas.places))
    begins = [*np.flatnonzero(text.position_T == 0).tolist(), len(text)]
    for begin, end in zip(begins, begins[1:], strict=False):
        pieces = atlas.words.pieces(tuple(text.token_T[begin:end].tolist()))
        ends = np.cumsum([len(each) for each in pieces])
        matched = np.zeros(end - begin + 1, int)
        for match in re.finditer(pattern, "".join(pieces)):
            if match.end() > match.start():
                one = np.searchsorted(ends, match.start(), "right")
                last = np.searchsorted(ends, match.end() - 1, "right")
                matched[one : last + 1] = 1
        for at in range(begin, end):
            low, high = max(at - 16, begin) - begin, min(at + 9, end) - begin
            spans[at] = bool(matched[low:high].any())
    return spans


@pytest.mark.parametrize("pattern", [r"\bt\w+", r"(?i)[aeiou]{2}", r'"#+\$?"'])
def test_by_a_pattern(atlas, pattern):
    there = contexts_with(atlas, pattern)
    chance = np.mean(list(there.values()))
    wanted = []
    for latent in range(F):
        own = [there[each.context.at] for each in atlas.examples(latent)]
        n, m = sum(own), len(own)
        if m and n > chance * m:
            rest = (m - n) * np.log2((1 - n / m) / (1 - chance)) if n < m else 0.0
            wanted.append((-(n * np.log2(n / m / chance) + rest), latent))
    found = atlas.find(regex=pattern, top=15)
    assert 0 < chance < 1 and len(wanted) > 15
    same(found, sorted(wanted)[:15])


def test_patterns_that_are_refused_or_slow(atlas):
    with pytest.raises(ConfigError, match="is no regular expression: missing \\)"):
        atlas.find(regex="(a")
    with pytest.raises(ConfigError, match="is no regular expression"):
        atlas.find(regex=r"(a)\1")
    with pytest.raises(ConfigError, match="matches nowhere in"):
        atlas.find(regex="zqzqzq")
    with pytest.raises(ConfigError, match="matches nowhere in"):
        atlas.find(regex="(z*)*zqzq(q+)+$")
    with pytest.raises(ConfigError, match="the pattern has 1,001 characters"):
        atlas.find(regex="a" * 1001)


def test_by_a_direction():
    torch.manual_seed(0)
    W_FE = torch.randn(500, 16)
    W_FE[7] = 0
    vector = W_FE[3] + 0.1 * W_FE[4]
    cosine = torch.nn.functional.cosine_similarity(W_FE, vector[None]).nan_to_num(0)
    wanted = cosine.argsort(descending=True)[:9]
    for step in (64, 1 << 20):  # rows of a tile
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sae_dist.atlas.find.direction.TILE_BYTES", 4 * 16 * step)
            latents, found = nearest(W_FE.bfloat16().float(), vector.numpy(), 9)
        assert latents.tolist() == wanted.tolist()
        assert found == pytest.approx(cosine[wanted].numpy(), abs=1e-2)


def test_a_direction_is_of_the_dictionary_beside_the_atlas(tmp_path, decoder):
    from sae_dist.core.sums import checksum
    from sae_dist.export.saelens import WEIGHTS, export_saelens
    from tests.helpers.dictionaries import random_sae

    sae = random_sae("topk", F=300, D=16, k=8)
    export_saelens(tmp_path / "export", sae)
    weights = checksum(tmp_path / "export" / WEIGHTS)["sha256"]
    atlas = Atlas.open(described(tmp_path / "atlas", 300, weights), decoder)
    found = atlas.find(direction=5, top=4)
    assert 5 not in found.latents and len(found) == 4
    np.save(tmp_path / "a.npy", sae.W_dec_FE[5].numpy())
    for direction in (sae.W_dec_FE[5], sae.W_dec_FE[5].tolist(), tmp_path / "a.npy"):
        again = atlas.find(direction=direction, top=5)
        assert again.latents == [5, *found.latents] and again[0].score == pytest.approx(1)
    wrong = {
        "direction has shape": [1.0] * 15,
        "direction is zero, or": [0.0] * 16,
        "direction must be 16 numbers": ["a"] * 16,
        "latent 300 does not exist": 300,
        "is no array of numbers": tmp_path / "export" / "cfg.json",
    }
    for says, direction in wrong.items():
        with pytest.raises(ConfigError, match=says):
            atlas.find(direction=direction)
    export_saelens(tmp_path / "export", random_sae("relu", F=300, D=16))
    with pytest.raises(ConfigError, match="was written after its atlas was made"):
        _ = Atlas.open(tmp_path, decoder).decoder


def test_by_a_label(tmp_path, decoder):
    atlas = Atlas.open(described(tmp_path / "atlas", 300), decoder)
    atlas.labels.set(17, "the Golden Gate bridge")
    atlas.labels.set(18, "other bridges")
    assert atlas.find(label="golden bridge").latents == [17]
    assert set(atlas.find(label="bridge").latents) == {17, 18}
    assert "no latent was found" in str(atlas.find(label="nothing"))
    assert "the Golden Gate bridge" in str(atlas.find(label="golden"))


def test_by_a_text_that_is_encoded(atlas):
    codes = TextCodes(
        np.array([4, 4, 400, 9]),
        np.array([1.0, 2.0, 2.5, 0.5], np.float32),
        np.array([0, 2, 1, 1]),
        ["a", " b", " c"],
    )
    atlas.encode = lambda text: codes
    try:
        found = atlas.find("a b c")
    finally:
        atlas.encode = None
    idf = {
        latent: -np.log2((atlas.counts[latent] + 0.5) / (atlas.facts["kept"] + 1)) for latent in (4, 400, 9)
    }
    score = {4: 3.0 * idf[4], 400: 2.5 * idf[400], 9: 0.5 * idf[9]}
    assert found.latents == sorted(score, key=lambda latent: -score[latent])
    assert [each.score for each in found] == pytest.approx([score[each] for each in found.latents])
    about = {each.latent: each.about for each in found}
    assert about[4] == {"both": 2, "strongest": " c"} and found.how.startswith("by encoding the text")


def test_what_was_found_can_be_taken_on(atlas):
    found = atlas.find(token=2, top=5)
    table, content = found.table, json.loads(found.to_json())
    assert table["latent"].to_pylist() == found.latents == [each["latent"] for each in content["latents"]]
    assert content["how"] == found.how and table.num_rows == 5
    lines = str(found).splitlines()
    assert lines[0] == found.how and len(lines) == 8
    html = found._repr_html_()
    assert "<script" not in html and str(found.latents[0]) in html


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "find takes one of text, token, regex, direction, label, together"),
        ({"text": "a", "token": "b"}, "find takes one of .*, not text and token"),
        ({"text": ""}, "text has 0 characters"),
        ({"token": ""}, "token has 0 characters"),
        ({"token": 1, "top": 0}, "top=0: give the number"),
        ({"together": []}, "together needs a latent"),
        ({"together": F}, "latent 600 does not exist"),
        ({"label": "?!"}, "has no word to look for"),
    ],
)
def test_what_is_refused(atlas, how, says):
    with pytest.raises(ConfigError, match=says):
        atlas.find(**how)


def test_a_search_without_tokenizer_says_so(tmp_path):
    atlas = Atlas.open(described(tmp_path / "atlas", 300))
    with pytest.raises(ConfigError, match="cannot be made tokens here: the run's config is not beside"):
        atlas.find("words")
    with pytest.raises(ConfigError, match="a pattern needs the text of tokens"):
        atlas.find(regex="a")
    assert len(atlas.find(token=2))


def test_searching_needs_no_torch(atlas):
    code = (
        "import sys; from sae_dist.atlas.read.atlas import Atlas; a = Atlas.open(sys.argv[1]); "
        "a.find(token=2); a.find(together=3); a[3]._repr_html_(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(atlas.folder)], check=True)
