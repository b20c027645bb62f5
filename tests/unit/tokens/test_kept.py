"""Which tokens are activations: special, masked, padding and listed ones are none, and are counted."""

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from test_tokens_sources import FACTS, npy, write_tar

from sae_dist.config.sections import TokensConfig
from sae_dist.core.errors import ConfigError
from sae_dist.tokens.kept import CODE, DocumentTokens, Kept
from sae_dist.tokens.source import open_tokens

BOS, PAD, MARK = 0, 7, 9
SPECIAL = replace(FACTS, special_ids=(BOS, PAD, MARK), pad_id=PAD)


def opened(cfg, facts=SPECIAL, *, lanes=1, rows=20, held_out=False):
    return open_tokens(cfg, facts, lanes=lanes, seed=0, rows=rows, held_out=held_out)


def read(ids, kept=None, **fields):
    kept = kept or Kept((BOS,), special=(MARK,), listed=(30,), pad_id=PAD)
    return kept.read(DocumentTokens(np.array(ids, np.int64), **fields))


def test_reasons():
    found = read([BOS, 20, MARK, 30, BOS, 21])
    assert found.ids_T.tolist() == [20, MARK, 30, BOS, 21]
    assert found.code_T.tolist() == [0, CODE["special"], CODE["listed"], CODE["special"], 0]


def test_padding_at_either_end_is_not_read_and_within_only_not_kept():
    found = read([PAD, PAD, BOS, 20, PAD, 21, PAD])
    assert found.ids_T.tolist() == [20, PAD, 21] and found.removed["special"] == 3
    assert read([20, PAD, 21], Kept((BOS,), special=(PAD,))).code_T.tolist() == [0, CODE["special"], 0]
    assert not len(read([PAD, PAD]).ids_T)


def test_what_packing_puts_around_a_document_is_not_doubled():
    kept = Kept((BOS,), (MARK,), pad_id=PAD)
    assert read([BOS, 20, 21, MARK, PAD], kept).ids_T.tolist() == [20, 21]
    assert read([20, MARK, 21], kept).ids_T.tolist() == [20, MARK, 21]
    assert not len(read([BOS, MARK], kept).ids_T) and not len(read([MARK], kept).ids_T)


def test_other_roles_move_with_what_is_cut_off():
    other = np.array([False, False, True, False])
    found = read([PAD, BOS, 20, 21], other_T=other)
    assert found.ids_T.tolist() == [20, 21] and found.code_T.tolist() == [CODE["roles"], 0]


def padded(folder, *, mask):
    """Rows padded to 60 tokens, on either side, in turn; the mask says so, and the padding token is 8."""
    samples = {}
    for number in range(24):
        length = 20 + number
        text, pads = list(range(100, 100 + length)), [8] * (60 - length)
        ids = text + pads if number % 2 else pads + text
        samples[f"{number:02d}.ids.npy"] = npy(ids)
        if mask:
            real = [int(each != 8) for each in ids]
            ending = "npy" if number % 3 else "json"
            content = npy(real) if ending == "npy" else json.dumps(real).encode()
            samples[f"{number:02d}.mask.{ending}"] = content
    write_tar(folder / "a.tar", samples)
    return TokensConfig(kind="webdataset", path=str(folder / "a.tar"), context=64, epochs=1)


def test_masked_tokens_are_neither_context_nor_activations(tmp_path):
    chunks = list(opened(padded(tmp_path, mask=True)).open(0, None))
    assert not any((chunk.ids_NS[chunk.segment_NS > 0] == 8).any() for chunk in chunks)
    assert sum(chunk.left_out["masked"] for chunk in chunks if chunk.left_out) > 100
    without = list(opened(padded(tmp_path, mask=False)).open(0, None))
    assert any((chunk.ids_NS[chunk.keep_NS] == 8).any() for chunk in without)


def test_masked_tokens_are_counted_once(tmp_path):
    source = opened(padded(tmp_path, mask=True), rows=1)
    expected = sum(source.documents.read(int(number)).masked for number in source.documents.numbers)
    assert sum(chunk.left_out.get("masked", 0) for chunk in source.open(0, None)) == expected > 100


def test_counts_do_not_depend_on_where_reading_began(tmp_path):
    cfg = padded(tmp_path, mask=True)
    cfg.exclude_ids = [103, 110]
    chunks = list(opened(cfg).open(0, None))
    assert sum(chunk.left_out.get("listed", 0) for chunk in chunks) > 20
    for index in range(0, len(chunks), 5):
        again = list(opened(cfg).open(0, chunks[index].start))
        assert [chunk.left_out for chunk in again] == [chunk.left_out for chunk in chunks[index:]]


def test_an_id_to_leave_out_is_one_of_the_models(tmp_path):
    cfg = padded(tmp_path, mask=False)
    cfg.exclude_ids = [2048]
    with pytest.raises(ConfigError, match="tokens.exclude_ids has 2048, which is no token .* 0 to 2047"):
        opened(cfg)


def test_text_that_spells_a_special_token_makes_no_activation_of_it(tmp_path):
    (tmp_path / "a.txt").write_text("one <|bos|> two\n" * 2000)
    cfg = TokensConfig(kind="text", path=str(tmp_path / "a.txt"), context=64)
    for chunk in islice(opened(cfg, replace(FACTS, special_ids=(BOS,))).open(0, None), 5):
        assert not (chunk.ids_NS[chunk.keep_NS] == BOS).any() and chunk.left_out["special"] > 0


def test_a_mask_that_does_not_fit_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"0.ids.npy": npy([1, 2, 3]), "0.mask.npy": npy([1, 1])})
    cfg = TokensConfig(kind="webdataset", path=str(tmp_path / "a.tar"), context=64)
    with pytest.raises(ConfigError, match=r"sample 0.ids.npy cannot be read: its attention mask .* \(2,\)"):
        opened(cfg)
