"""Times of a model's forwards with a dictionary beside it: a prompt at once, then token by token.

Letters: as core.types.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from statistics import mean

import torch
from torch import Tensor

from sae_dist.bench.beside.arms import Arm
from sae_dist.bench.peers.step_io import Memory, synchronize
from sae_dist.interpret.forward import CACHES
from sae_dist.interpret.model import LanguageModel

PREFILL, DECODE = "prefill", "decode"


@dataclass
class Times:
    """The seconds of one way at one batch, by phase: a sample per round.

    Attributes:
        wall, processor: seconds of a forward; of decoding the mean over the round's steps.
        peak: bytes beyond what was held before, the most of a round.
    """

    wall: dict[str, list[float]] = field(default_factory=lambda: {PREFILL: [], DECODE: []})
    processor: dict[str, list[float]] = field(default_factory=lambda: {PREFILL: [], DECODE: []})
    peak: int = 0


def time_arms(lm: LanguageModel, ways: list[Arm], ids_NS: Tensor, steps: int, rounds: int) -> list[Times]:
    """Time every way in turn, forwards and backwards by turns, after a round that counts for nothing.

    Args:
        ids_NS: prompts, and the tokens decoded after them.
        steps: how many these are; an encoder decodes none.
    """
    found = [Times() for _ in ways]
    order = list(zip(ways, found, strict=True))
    with torch.no_grad():
        for arm in ways:
            _round(lm, arm, Times(), ids_NS, steps)
        for turn in range(rounds):
            for arm, times in order if turn % 2 == 0 else reversed(order):
                _round(lm, arm, times, ids_NS, steps)
    return found


def _round(lm: LanguageModel, arm: Arm, times: Times, ids_NS: Tensor, steps: int) -> None:
    memory = Memory(ids_NS.device)
    before = memory.held()
    memory.reset_peak()
    with arm.begin():
        if not lm.causal:
            mask = torch.ones_like(ids_NS)
            _note(times, PREFILL, [_timed(lambda: lm.reader(ids_NS, attention_mask=mask), ids_NS)])
        else:
            # Of a prompt only the last logits are used, where the model can be asked for them alone.
            known = signature(lm.model.forward).parameters
            last = {"logits_to_keep": 1} if "logits_to_keep" in known else {}
            name = next(each for each in reversed(CACHES) if each in known)
            cache = [None]

            def forward(ids: Tensor) -> None:
                found = lm.model(ids, **{name: cache[0]}, use_cache=True, **last)
                cache[0] = getattr(found, name)

            first = ids_NS.shape[1] - steps
            _note(times, PREFILL, [_timed(partial(forward, ids_NS[:, :first]), ids_NS)])
            following = ids_NS[:, first:].split(1, dim=1)
            _note(times, DECODE, [_timed(partial(forward, ids_N1), ids_NS) for ids_N1 in following])
    times.peak = max(times.peak, memory.peak() - before)


def _timed(act: Callable[[], object], on: Tensor) -> tuple[float, float]:
    """Return the wall and processor seconds of a call, the device's work included."""
    synchronize(on.device)
    wall, processor = time.perf_counter(), time.process_time()
    act()
    synchronize(on.device)
    return time.perf_counter() - wall, time.process_time() - processor


def _note(times: Times, phase: str, samples: list[tuple[float, float]]) -> None:
    times.wall[phase].append(mean(each[0] for each in samples))
    times.processor[phase].append(mean(each[1] for each in samples))
