"""The ranks inside torchrun or a Slurm step: rank 0 composes and freezes, the others wait and read."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from sae_dist.core.errors import Told, TransportError
from sae_dist.core.place import Place
from sae_dist.distributed.runtime import slurm_rendezvous
from sae_dist.launch.freeze import Frozen

WAIT_S = 600.0
POLL_S = 0.1


class SaidByRankZero(Told):
    """An error that rank 0 prints for all; the other ranks leave silently, with its exit code."""

    def __init__(self, exit_code: int):
        super().__init__("rank 0 said why")
        self.exit_code = exit_code


def agree_on_run(where: Place, prepare: Callable[[], Frozen]) -> Frozen:
    """Return the run folder that rank 0 prepares, on every rank.

    Rank 0 may need long, to download a model; the others wait for as long as it lives.

    Raises:
        Exception: what rank 0 raised, on rank 0.
        SaidByRankZero: the same, on the other ranks.
        TransportError: rank 0 is gone, on the other ranks.
    """
    store = dist.PrefixStore("launch", _store(where))
    if where.rank == 0:
        try:
            frozen = prepare()
            frozen = replace(frozen, folder=frozen.folder.resolve())
        except Exception as error:
            _answer(store, where, {"exit_code": getattr(error, "exit_code", 1)})
            raise
        made = [str(folder.resolve()) for folder in frozen.made]
        _answer(store, where, {"folder": str(frozen.folder), "finished": frozen.finished, "made": made})
        return frozen
    try:
        while not store.check(["run"]):
            time.sleep(POLL_S)
        answer = json.loads(store.get("run"))
        store.add("read", 1)
    except RuntimeError:
        raise TransportError("rank 0 ended before the run began; it may have said why") from None
    if "exit_code" in answer:
        raise SaidByRankZero(answer["exit_code"])
    return Frozen(Path(answer["folder"]), answer["finished"], tuple(map(Path, answer["made"])))


def _answer(store: dist.Store, where: Place, answer: dict[str, object]) -> None:
    """Send the answer, and wait until every rank has read it: rank 0 may host the store."""
    store.set("run", json.dumps(answer))
    store.add("read", 1)
    while store.add("read", 0) < where.world:
        time.sleep(POLL_S / 10)


def _store(where: Place) -> dist.Store:
    """Return the launcher's store, or one hosted by rank 0, as torch's env:// rendezvous finds it."""
    slurm_rendezvous()
    store, _, _ = next(dist.rendezvous("env://", where.rank, where.world, timeout=timedelta(seconds=WAIT_S)))
    return store
