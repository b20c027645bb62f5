"""Every column of a real atlas's latents, by brute force on transformers' own model, for 64 latents."""

import copy
import json
from collections import Counter
from math import log2

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_dist.atlas.schema import KEPT, LATENTS_SCHEMA, QUANTILES, TOP
from sae_dist.export.saelens import load_exported
from tests.helpers.plain_hash import splitmix
from tests.helpers.untrained import untrained_run
from tests.helpers.warm import warm

LATENTS = range(3, 512, 8)
CLOSE = dict(rel=2e-3, abs=2e-4)
CHUNK = 130
"""Kept tokens of a chunk: 128 rows, and two to spare."""


@pytest.fixture(scope="module")
def run(folder):
    run = untrained_run(folder, "columns")
    done = warm(folder, "atlas", str(run), "atlas.tokens=4000", "atlas.lanes=4", "atlas.lens=1")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def model(run):
    return AutoModelForCausalLM.from_pretrained(run.parent / "llm", dtype=torch.float32).eval()


def table(run, name):
    return [
        row for path in sorted((run / "atlas").glob(f"{name}/*")) for row in pq.read_table(path).to_pylist()
    ]


@pytest.fixture(scope="module")
def text(run):
    """The columns of the text, by place; and the segments, as ranges of places."""
    found = pq.read_table(run / "atlas/tokens.parquet")
    columns = {name: found[name].to_numpy().astype(np.int64) for name in found.column_names}
    begins = np.flatnonzero(columns["position"] == 0).tolist()
    return columns, [range(*pair) for pair in zip(begins, [*begins[1:], len(columns["at"])], strict=True)]


@pytest.fixture(scope="module")
def dense(run, model, text):
    """Codes [places, F] by the formula from the model's own activations, each segment alone.

    Where the index and a product of matrices choose different latents, as where codes are equal to rounding,
    the index's choice holds.
    """
    columns, segments = text
    sae, seen = load_exported(run / "export"), {}
    handle = model.model.layers[1].register_forward_hook(lambda *args: seen.update(x=args[2]))
    code_TF = torch.zeros(len(columns["at"]), sae.num_latents)
    with torch.no_grad():
        for segment in segments:
            model(torch.from_numpy(columns["token"][segment.start : segment.stop])[None])
            x_SD = seen["x"].view(len(segment), -1)
            code_TF[segment.start : segment.stop] = (x_SD - sae.b_dec_E) @ sae.W_enc_FD.T + sae.b_enc_F
    handle.remove()
    chosen_TF = torch.zeros_like(code_TF).scatter_(1, code_TF.topk(sae.k).indices, 1) * (code_TF > 0)
    chosen_TF[torch.from_numpy(columns["state"] != KEPT)] = 0
    found_TF = torch.zeros_like(code_TF)
    for row in table(run, "postings"):
        found_TF[row["at"], row["latent"]] = 1
    assert (chosen_TF != found_TF).sum() <= 4
    return (code_TF * found_TF).numpy()


@pytest.fixture(scope="module")
def latents(run):
    found = table(run, "latents")
    assert [row["latent"] for row in found] == list(range(512))
    return [found[latent] for latent in LATENTS]


def test_every_column_has_its_test():
    tested = "latent count documents rate sum squares least most quantiles histogram bins tokens next"
    tested += " up down lens_up lens_down near together"
    assert LATENTS_SCHEMA.names == tested.split()


def test_numbers(dense, text, latents):
    columns, _ = text
    kept = int((columns["state"] == KEPT).sum())
    for row in latents:
        code_T = dense[:, row["latent"]].astype(np.float64)
        fired = np.sort(code_T[code_T > 0])
        assert row["count"] == len(fired) and row["rate"] == len(fired) / kept
        assert row["documents"] == len(set(columns["document"][code_T > 0].tolist()))
        if not len(fired):
            assert row["least"] is row["most"] is None
            continue
        assert row["sum"] == pytest.approx(fired.sum(), **CLOSE)
        assert row["squares"] == pytest.approx((fired**2).sum(), **CLOSE)
        assert (row["least"], row["most"]) == pytest.approx((fired[0], fired[-1]), **CLOSE)
        assert row["quantiles"] == pytest.approx(np.quantile(fired, QUANTILES).tolist(), **CLOSE)
        edges = [0, *(fired[-1] / 2**n for n in (4, 3, 2, 1)), np.inf]
        for name, counts in (
            ("histogram", np.histogram(fired, 48, (0, fired[-1]))[0]),
            ("bins", np.histogram(fired, edges)[0][::-1]),
        ):
            # A code at an edge, to rounding, may be on its other side.
            assert np.abs(np.cumsum(row[name]) - np.cumsum(counts)).max() <= 2
            assert sum(row[name]) == len(fired)
    assert sum(row["count"] for row in latents) > 1000


def test_examples(run, dense, text, latents):
    columns, _ = text
    examples = table(run, "examples")
    for row in latents:
        code_T = dense[:, row["latent"]]
        top = [each for each in examples if each["latent"] == row["latent"] and each["bin"] == TOP]
        best = {}
        for at in np.flatnonzero(code_T):
            document = int(columns["document"][at])
            best[document] = max(best.get(document, 0), float(code_T[at]))
        assert [each["code"] for each in top] == pytest.approx(sorted(best.values())[::-1][:20], **CLOSE)
        for each in top:
            assert each["code"] == pytest.approx(code_T[each["at"]], **CLOSE)
            assert each["document"] == columns["document"][each["at"]]


def _bits(both, token, latent, places):
    def entropy(*counts):
        return -sum(n / places * log2(n / places) for n in counts if n)

    cells = both, token - both, latent - both, places - token - latent + both
    return entropy(token, places - token) + entropy(latent, places - latent) - entropy(*cells)


@pytest.mark.parametrize("name", ["tokens", "next"])
def test_tokens(dense, text, latents, name):
    columns, segments = text
    ahead = name == "next"
    places = [
        at for each in segments for at in (each[:-1] if ahead else each) if columns["state"][at] == KEPT
    ]
    token_R = columns["token"][np.array(places) + ahead]
    of_token = Counter(token_R.tolist())
    for row in latents:
        fires_R = dense[places, row["latent"]] > 0
        both, fired = Counter(token_R[fires_R].tolist()), int(fires_R.sum())
        bits = {
            token: _bits(n, of_token[token], fired, len(places))
            for token, n in both.items()
            if n * len(places) > of_token[token] * fired
        }
        assert [each["bits"] for each in row[name]] == pytest.approx(
            sorted(bits.values())[::-1][:10], rel=1e-4, abs=1e-8
        )
        for each in row[name]:
            assert each["bits"] == pytest.approx(bits[each["token"]], rel=1e-4, abs=1e-8)
            assert each["count"] == both[each["token"]]


def _compare(found, logit_V, sign):
    order = np.argsort(-sign * logit_V)[: len(found)]
    assert len(found) == 10
    assert [each["logit"] for each in found] == pytest.approx(logit_V[order].tolist(), **CLOSE)
    assert [each["logit"] for each in found] == pytest.approx(
        logit_V[[each["token"] for each in found]].tolist(), **CLOSE
    )


def test_logits(run, model, latents):
    """Straight to the head."""
    words = len(AutoTokenizer.from_pretrained(run.parent / "llm"))
    W_dec_FE = load_exported(run / "export").W_dec_FE
    with torch.no_grad():
        logit_FV = (W_dec_FE @ model.lm_head.weight[:words].T).numpy()
    for row in latents:
        _compare(row["up"], logit_FV[row["latent"]], 1)
        _compare(row["down"], logit_FV[row["latent"]], -1)


def test_logits_through_the_layers_between(run, model, text, latents):
    """By small steps along a decoder row, at one place of the first chunk after the other."""
    columns, segments = text
    rows = latents[:3]
    W_dec_FE = load_exported(run / "export").W_dec_FE.double()
    change, positions, documents, kept = torch.zeros(len(rows), W_dec_FE.shape[1]), 0, set(), 0
    exact = copy.deepcopy(model).double()
    for each in segments:
        own = slice(each.start, each.stop)
        keep = np.flatnonzero(columns["state"][own] == KEPT)[: CHUNK - kept]
        if not len(keep):
            break
        kept += len(keep)
        ids_S = torch.from_numpy(columns["token"][own][: keep[-1] + 1])
        places = keep[keep >= 16].tolist()
        if places:
            documents.add(int(columns["document"][each.start]))
        positions += len(places)
        for n, row in enumerate(rows):
            change[n] += _changes(exact, ids_S, places, W_dec_FE[row["latent"]]).sum(0) if places else 0
    said = json.loads((run / "atlas/atlas.json").read_text())["lens"]
    assert said == f"fitted on {positions:,} positions of {len(documents):,} documents"
    words = len(AutoTokenizer.from_pretrained(run.parent / "llm"))
    with torch.no_grad():
        logit = (change / positions @ model.lm_head.weight[:words].T).numpy()
    for n, row in enumerate(rows):
        _compare(row["lens_up"], logit[n], 1)
        _compare(row["lens_down"], logit[n], -1)


@torch.no_grad()
def _changes(model, ids_S, places, row_D, step=1e-3):
    """How the sum of later final activations changes by a step along a row at each place [places, H]."""
    seen, moves = {}, torch.zeros(len(places), len(ids_S), len(row_D), dtype=torch.float64)
    moves[range(len(places)), places] = step * row_D
    last = model.model.layers[-1].register_forward_hook(lambda *args: seen.update(y=args[2]))
    found = []
    for sign in (1, -1):
        put = model.model.layers[1].register_forward_hook(lambda *args, s=sign: args[2] + s * moves)
        model.model(ids_S.expand(len(places), -1))
        put.remove()
        found.append(torch.stack([y_SH[p:].sum(0) for y_SH, p in zip(seen["y"], places, strict=True)]))
    last.remove()
    return (found[0] - found[1]) / (2 * step)


def test_near_rows(run, latents):
    unit_FE = normalize(load_exported(run / "export").W_dec_FE.double(), dim=1)
    cosine_FF = (unit_FE @ unit_FE.T).fill_diagonal_(-2)
    for row in latents:
        best = cosine_FF[row["latent"]].topk(10)
        assert [each["latent"] for each in row["near"]] == best.indices.tolist()
        assert [each["cosine"] for each in row["near"]] == pytest.approx(best.values.tolist(), abs=1e-6)


def test_together(dense, text, latents):
    kept = int((text[0]["state"] == KEPT).sum())
    rate_F = (dense > 0).sum(0) / kept
    listed = 0
    for row in latents:
        places = np.flatnonzero(dense[:, row["latent"]])
        places = sorted(places.tolist(), key=lambda at, f=row["latent"]: splitmix(f, at))[:16]
        times_F = (dense[places] > 0).sum(0)
        strength = {}
        for other in np.flatnonzero(times_F >= 2).tolist():
            share, rate = times_F[other] / len(places), rate_F[other]
            if other != row["latent"] and share > rate:
                strength[other] = share * log2(share / rate)
                strength[other] += (1 - share) * log2((1 - share) / (1 - rate)) if share < 1 else 0
        found = [strength[each["latent"]] for each in row["together"]]
        assert found == pytest.approx(sorted(strength.values())[::-1][:10], rel=1e-5)
        for each in row["together"]:
            share = times_F[each["latent"]] / len(places)
            assert (each["share"], each["lift"]) == pytest.approx((share, share / rate_F[each["latent"]]))
        listed += len(found)
    assert listed > 64
