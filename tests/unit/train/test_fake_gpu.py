"""What runs on a GPU, on one that is not there: no two devices meet, and no copy holds a step up."""

import pytest
import torch

from sae_dist.config.kinds import KINDS
from sae_dist.evaluation.quality.measure import Evaluation
from sae_dist.kernels import torch_backend
from sae_dist.launch.compose import compose_config
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.tokens.source import open_tokens
from sae_dist.train.evaluator import Evaluator, shard_of
from sae_dist.train.held_out import HeldOut, Shares
from tests.helpers.fake_cuda import counting, fake_cuda, on_device
from tests.helpers.fake_device import CUDA, HOST, OnDevice
from tests.helpers.fake_steps import CASES, WIDTH, make_run, steps
from tests.helpers.ranks import run_ranks

TRANSCODER = "target_hook=layers.1"
FAST = [(kind, "adam", ()) for kind in KINDS] + [("topk", "row_adam", (TRANSCODER,))]


def counted(kind, optimizer, words, source):
    """Take steps on the fake GPU and on the host; return copies, reads, and the distance of the weights.

    The distance is that of two kinds, one selected and one dense: what is compared is the fake GPU.
    """
    with fake_cuda():
        run = make_run(kind, optimizer, CUDA, *words, source=torch.device(source))
        found = steps(run, 5)
        assert any("loss/fvu" in row for row in run.written)
        moved = run.dictionary.W_dec.detach().inner
    if kind not in ("topk", "relu"):
        return dict(found.copies), dict(found.reads), 0.0
    plain = make_run(kind, optimizer, HOST, *words)
    steps(plain, 5)
    error = (plain.dictionary.W_dec - moved).norm() / moved.norm()
    return dict(found.copies), dict(found.reads), float(error)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case in FAST else pytest.mark.long, id="-".join(case[:2]))
        for case in CASES
    ],
)
def test_no_copy_from_the_host_holds_a_step_up(case):
    """Forward, backward, update and what is recorded, AuxK included; the torch kernels."""
    (found,) = run_ranks(counted, 1, *case, "cuda")
    copies, reads, error = found
    assert copies == {} and error < 1e-3
    if case[0] in ("relu", "gated", "jumprelu"):
        assert reads == {}


@pytest.mark.parametrize("kind", ["topk", "relu"])
def test_rows_on_the_host_are_moved_without_a_wait(kind):
    ((copies, _, error),) = run_ranks(counted, 1, kind, "adam", (), "cpu")
    assert copies == {} and error < 1e-3


def evaluated(kind, words):
    """Evaluate on the fake GPU, in training and as at its end."""
    width = WIDTH * (1 + len(words))
    rows = torch.randn(100, width, generator=torch.Generator().manual_seed(1))
    with fake_cuda():
        run = make_run(kind, "adam", CUDA, "sae.aux_k=8" if kind == "topk" else "seed=0", *words)
        run.next_batch()
        found = Evaluator(HeldOut(Shares(rows, len(rows), rows.mean(0))), slice(0, width), 1).evaluate(run)
        part = Evaluation(run.cfg, shard_of(run), torch_backend.encode_topk)
        for batch in rows.split(40):
            part.add(batch.to(CUDA))
        numbers = part.numbers()
    return found["eval/fvu"], numbers["fvu"]


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_stays_on_its_device(kind):
    ((during, after),) = run_ranks(evaluated, 1, kind, ())
    assert 0 < during == pytest.approx(after, rel=1e-4)


def test_a_transcoder_is_evaluated_on_its_device():
    ((during, after),) = run_ranks(evaluated, 1, "relu", (TRANSCODER,))
    assert 0 < during == pytest.approx(after, rel=1e-4)


def test_a_chunk_of_the_llm_waits_for_its_device_once():
    """Copies none; one read, of all that the host must know of the chunk."""
    cfg = compose_config(["device=cpu"])
    facts = llm_facts(cfg.llm, None)[0]
    llm = FrozenLlm.load(cfg.llm, facts, device=HOST, dtype=torch.float32, with_head=False)
    tokens = open_tokens(cfg.tokens, facts, lanes=2, seed=0, rows=96, held_out=False)
    source = LlmChunkSource(llm, tokens, rows=80, spare=16, max_norm_multiple=1.2)
    expected = next(source.open(0, None))
    assert expected.excluded > 0
    with fake_cuda(), torch.no_grad():
        on_device(llm.model)
        llm.device = CUDA
        with counting() as counts:
            chunk = next(source.open(0, None))
    assert isinstance(chunk.rows_RD, OnDevice) and isinstance(chunk.ids_R, OnDevice)
    torch.testing.assert_close(chunk.rows_RD.inner, expected.rows_RD, rtol=1e-3, atol=1e-3)
    assert torch.equal(chunk.ids_R.inner, expected.ids_R)
    assert (chunk.excluded, chunk.repeated) == (expected.excluded, expected.repeated)
    assert dict(counts.copies) == {} and sum(counts.reads.values()) == 1


def test_what_a_gpu_would_wait_for_shows():
    with fake_cuda() as counts:
        row = torch.ones(3, device=CUDA)
        with pytest.raises(RuntimeError, match="same device"):
            row + torch.ones(3)
        row[torch.tensor([0])]
        row.new_tensor([1.0])
        torch.ones(3).to(CUDA, non_blocking=True)  # the source is not pinned
        torch.ones(3).pin_memory().to(CUDA, non_blocking=True)
        float(row.sum())
    assert sum(counts.copies.values()) == 3 and sum(counts.reads.values()) == 1
