"""The ranks of a pass that run the model: the source of activations, and what the head says of latents.

Letters: as core.types; H width of what the last layer gives.
"""

from dataclasses import replace

import torch

from sae_dist.atlas.describe.effects import why_no_fit
from sae_dist.atlas.describe.head import FILE as HEAD
from sae_dist.atlas.describe.head import Head
from sae_dist.atlas.describe.lens import LensSum, fit, why_no_lens
from sae_dist.atlas.finish import check_stop
from sae_dist.atlas.schema import WORK
from sae_dist.atlas.text import Recorded
from sae_dist.config.atlas import HELD_OUT, TRAINING
from sae_dist.core.errors import ConfigError, TransportError
from sae_dist.core.files import read_json, write_json
from sae_dist.core.process import pause
from sae_dist.core.types import Precision
from sae_dist.distributed.control import Control
from sae_dist.distributed.runtime import StopRequest
from sae_dist.llm.capture import LlmChunkSource
from sae_dist.llm.facts import llm_facts
from sae_dist.llm.frozen import FrozenLlm
from sae_dist.llm.whole import load_to_splice
from sae_dist.tokens.decoder import Decoder
from sae_dist.tokens.source import TokenSource, open_tokens
from sae_dist.train.atlas.reading import Pass

LENS, REASONS = "lens", "head.json"
POLL_S = 0.05


def open_text(each: Pass) -> TokenSource:
    """Open the text in lanes, for one pass."""
    held_out = {HELD_OUT: True, TRAINING: False}.get(each.atlas.text)
    return open_tokens(
        each.cfg.tokens,
        each.facts,
        lanes=each.plan.lanes,
        seed=each.cfg.seed,
        rows=each.plan.rows,
        held_out=held_out,
        short=True,
    )


def open_source(each: Pass) -> Recorded:
    """Load the LLM up to the hook, and open the text."""
    cfg, topology = each.cfg, each.topology
    llm = FrozenLlm.load(
        cfg.llm,
        each.facts,
        device=each.device,
        dtype=getattr(torch, cfg.llm.dtype),
        with_head=False,
        team=None if topology.is_consumer else topology.team,
        witness=topology.reads_first,
    )
    source = LlmChunkSource(
        llm,
        open_text(each),
        rows=each.plan.rows,
        spare=0,
        max_norm_multiple=cfg.tokens.max_norm_multiple,
        wire=Precision.of(cfg.precision).wire,
    )
    return Recorded(source, each.folder, each.plan, topology.is_consumer or topology.is_sender)


def look_at_head(each: Pass, rank: int, ranks: int, control: Control) -> None:
    """Fit this rank's share of the mean Jacobian, and keep the unembedding; one of `ranks` ranks.

    The model is loaded whole; where that cannot be, or has no such effects, the reason is kept instead.
    """
    if not (each.folder / WORK / f"{rank}-of-{ranks}-{REASONS}").is_file():
        write_json(each.folder / WORK / f"{rank}-of-{ranks}-{REASONS}", _looked(each, rank, ranks, control))
    control.set(_key(rank, ranks), "")


def await_head(ranks: int, stop: StopRequest, control: Control) -> None:
    """Wait until every rank has looked at the head.

    Raises:
        Preempted: a rank was asked to stop.
        TransportError: a rank failed.
    """
    for rank in range(ranks):
        while not control.check(_key(rank, ranks)):
            check_stop(stop, control)
            if failure := control.failure():
                raise TransportError(failure)
            pause(POLL_S)


def _looked(each: Pass, rank: int, ranks: int, control: Control) -> dict[str, str | None]:
    """Return why there are no direct effects, and why there is no lens; None: there are."""
    cfg = each.cfg
    facts = llm_facts(cfg.llm, cfg.hook, each.target_hook)[0]
    reason = None if facts.causal else f"{facts.name} is an encoder: it has no head that predicts tokens"
    if reason is None:
        llm, reason = load_to_splice(cfg.llm, facts, each.device)
    if reason is not None:
        return {"effects": reason, "lens": reason}
    head, reason = Head.of(llm, each.sae.W_dec_FE.shape[1], len(Decoder(facts)), None)
    if rank == 0:
        head.write(each.folder)
    return {"effects": reason, "lens": _fitted(each, llm, rank, ranks, control)}


def _fitted(each: Pass, llm: FrozenLlm, rank: int, ranks: int, control: Control) -> str | None:
    """Write this rank's rows of the sum of Jacobians over the first chunk of lanes; return why not."""
    lanes = range(min(each.atlas.lens, each.plan.lanes, each.plan.chunks))
    if not each.atlas.lens:
        return "atlas.lens=0"
    if reason := why_no_lens(llm):
        return reason
    text = open_text(each)
    for lane in lanes:
        check_stop(each.stop, control)
        chunk = next(text.open(lane, None), None)
        path = each.folder / WORK / LENS / f"lane-{lane:05d}-{rank:05d}-of-{ranks}.safetensors"
        if chunk is None or path.is_file():
            continue
        try:
            found = fit(llm, chunk, share=(rank, ranks))
        except ConfigError as error:
            return str(error)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.write(path)
    return None


def head_of(each: Pass, ranks: int) -> tuple[Head, dict[str, str | None]]:
    """Return what the ranks found, and the manifest's words for `lens` and `effects`."""
    told = [read_json(each.folder / WORK / f"{rank}-of-{ranks}-{REASONS}") or {} for rank in range(ranks)]
    effects, lens = (next((one[name] for one in told if one[name]), None) for name in ("effects", "lens"))
    head = Head.open(each.folder) if (each.folder / WORK / HEAD).is_file() else Head()
    paths = sorted((each.folder / WORK / LENS).glob(f"lane-*-of-{ranks}.safetensors"))
    total = sum((LensSum.read(path) for path in paths), LensSum(torch.zeros(0, 0), 0, 0))
    if lens is None and not total.positions:
        lens = "no document is long enough for it"
    if lens is None and head.W_U_VH is not None:
        lens = why_no_fit(len(total.sum_HE), head.W_U_VH.shape[1])
    if lens is not None:
        return head, {"effects": effects, "lens": f"not fitted: {lens}"}
    words = f"fitted on {total.positions:,} positions of {total.prompts:,} documents"
    return replace(head, jacobian_HE=total.mean_HE()), {"effects": effects, "lens": words}


def _key(rank: int, ranks: int) -> str:
    return f"head/{rank}/{ranks}"
