"""The mean Jacobian of the layers between, against autograd's of documents alone, and finite differences."""

import pytest
import torch
from torch.autograd.functional import jacobian

from sae_dist.atlas.describe.effects import top_logits
from sae_dist.atlas.describe.lens import GRID, LensSum, fit, why_no_lens
from sae_dist.config.sections import LlmConfig
from sae_dist.core.errors import ConfigError
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from tests.helpers.tiny_llms import WIDTH, TinyLlms, packed_chunk

CPU = torch.device("cpu")
HOOKS = {
    "llama": ("layers.1:out", "layers.3:out"),
    "gpt2": ("h.2.mlp:out", "h.3:out"),
}
LENGTHS = ((9, 22, 6), (19, 18))
SKIP = 16


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return TinyLlms(tmp_path_factory)


def load(name, hook, head=True, attn="eager"):
    cfg = LlmConfig(name=name, attn=attn)
    return FrozenLlm.load(cfg, llm_facts(cfg, hook)[0], device=CPU, dtype=torch.float64, with_head=head)


@pytest.fixture(scope="module", params=HOOKS)
def llm(request, tiny):
    return load(tiny(request.param), HOOKS[request.param][0])


def documents(chunk):
    """Ids of each document of a packed chunk, and its kept places."""
    for n in range(len(chunk.ids_NS)):
        for segment in range(1, int(chunk.segment_NS[n].max()) + 1):
            inside = chunk.segment_NS[n] == segment
            yield chunk.ids_NS[n, inside], chunk.keep_NS[n, inside]


def from_hook(llm, ids, last):
    """The activations at the hook, and a function from them to what the module `last` of the base gives."""
    module = llm.base.get_submodule(llm.facts.hook.split(":")[0])
    other = llm.base.get_submodule(last)
    seen = {}

    def tensor(output):
        return output if isinstance(output, torch.Tensor) else output[0]

    def run(x=None):
        def replace(_module, _args, output):
            seen["x"] = tensor(output)
            if x is not None:
                return x[None] if isinstance(output, torch.Tensor) else (x[None], *output[1:])

        handles = [
            module.register_forward_hook(replace),
            other.register_forward_hook(lambda _m, _a, output: seen.update(y=tensor(output))),
        ]
        llm.base(input_ids=ids[None])
        for handle in handles:
            handle.remove()
        return seen["y"][0]

    run()
    return seen["x"][0].detach(), run


def test_is_the_mean_of_jacobians_of_documents_alone(llm):
    chunk = packed_chunk(LENGTHS)
    last = HOOKS["gpt2" if llm.facts.hook.startswith("h") else "llama"][1].split(":")[0]
    total, positions, prompts = torch.zeros(WIDTH, WIDTH, dtype=torch.float64), 0, 0
    for ids, keep in documents(chunk):
        x_SE, run = from_hook(llm, ids, last)
        J = jacobian(run, x_SE)
        before = positions
        for p in range(SKIP, len(ids)):
            if keep[p]:
                total += J[p:, :, p].sum(0)
                positions += 1
        prompts += positions > before
    assert why_no_lens(llm) is None
    found = fit(llm, chunk)
    assert (found.positions, found.prompts) == (positions, prompts) == (11, 3)
    torch.testing.assert_close(found.mean_HE(), total / positions, rtol=1e-6, atol=1e-7)
    # Later tokens of the document count, and those of others do not: neither is small here.
    assert float((found.mean_HE() - torch.eye(WIDTH)).norm()) > 1


def test_logits_through_it_are_the_change_of_mean_logits(llm):
    """A small step along a decoder row, at one place after the other, moves later logits as it says."""
    ids = packed_chunk(((20,),)).ids_NS[0, :20]
    row_1E = torch.randn(1, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    W_U_VH = llm.unembedding().double()
    last = HOOKS["gpt2" if llm.facts.hook.startswith("h") else "llama"][1].split(":")[0]
    chunk = packed_chunk(((20,),))
    J_HE = fit(llm, chunk).mean_HE()
    x_SE, run = from_hook(llm, ids, last)
    change_V, step = torch.zeros(len(W_U_VH), dtype=torch.float64), 1e-4
    with torch.no_grad():
        for p in range(SKIP, 20):
            moved = torch.zeros_like(x_SE)
            moved[p] = step * row_1E[0]
            change_V += ((run(x_SE + moved) - run(x_SE - moved))[p:] @ W_U_VH.T).sum(0) / (2 * step) / 4
    up, down = top_logits(row_1E, W_U_VH, 20, J_HE)
    order_V = change_V.argsort(descending=True)
    assert up.id_fN[0].tolist() == order_V[:20].tolist()
    assert down.id_fN[0].tolist() == order_V.flip(0)[:20].tolist()
    assert up.values[0][0] == pytest.approx(change_V[order_V[:20]].numpy(), rel=1e-4)
    direct, _ = top_logits(row_1E, W_U_VH, 20)
    assert direct.id_fN[0].tolist() != up.id_fN[0].tolist()


def test_skips_as_many_tokens_as_it_is_told(llm):
    few, most = (fit(llm, packed_chunk(LENGTHS), skip=skip) for skip in (20, 0))
    assert few.positions == 2 and most.positions == sum(map(sum, LENGTHS)) - 5


def test_sums_are_the_same_in_any_order(llm, tmp_path):
    chunks = [packed_chunk(lengths) for lengths in (LENGTHS, ((30,),), ((5, 6),), ((17, 17),))]
    first, second, none, third = (fit(llm, chunk) for chunk in chunks)
    assert none.positions == 0
    one, other = first + second + none + third, none + third + (second + first)
    assert torch.equal(one.sum_HE, other.sum_HE) and one.positions == other.positions == 11 + 14 + 2
    assert torch.equal(one.sum_HE, torch.round(one.sum_HE / GRID) * GRID)
    one.write(tmp_path / "lens.safetensors")
    assert torch.equal(LensSum.read(tmp_path / "lens.safetensors").mean_HE(), one.mean_HE())
    parts = fit(llm, chunks[0], tokens=40)
    torch.testing.assert_close(parts.sum_HE, first.sum_HE, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="longer"):
        none.mean_HE()


def test_ranks_share_the_rows(llm):
    """Together they have the bytes, and the counts, of one alone."""
    chunk = packed_chunk(LENGTHS)
    whole = fit(llm, chunk)
    for ranks in (2, 3):
        shares = [fit(llm, chunk, share=(rank, ranks)) for rank in range(ranks)]
        total = sum(shares[1:], shares[0])
        assert torch.equal(total.sum_HE, whole.sum_HE)
        assert (total.positions, total.prompts) == (whole.positions, whole.prompts)
        assert not torch.equal(shares[0].sum_HE, whole.sum_HE)


def test_is_the_identity_at_the_last_layer(tiny):
    llm = load(tiny("llama"), HOOKS["llama"][1])
    torch.testing.assert_close(fit(llm, packed_chunk(LENGTHS)).mean_HE(), torch.eye(WIDTH).double())


def test_says_why_there_is_none(tiny):
    assert "encoder" in why_no_lens(load(tiny("bert"), None))
    assert "not loaded" in why_no_lens(load(tiny("llama"), HOOKS["llama"][0], head=False))
    behind = load(tiny("llama"), "norm:out")
    with pytest.raises(ConfigError, match="the last layer comes before the hook"):
        fit(behind, packed_chunk(LENGTHS))
    llm = load(tiny("llama"), HOOKS["llama"][0])
    llm.base.get_submodule("layers.2").register_forward_hook(
        lambda _module, _args, output: output.detach() if torch.is_tensor(output) else output[0].detach()
    )
    with pytest.raises(ConfigError, match="nothing after the hook depends on it"):
        fit(llm, packed_chunk(LENGTHS))
