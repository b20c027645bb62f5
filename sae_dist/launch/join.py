"""Inside torchrun or a Slurm step: rank 0 composes and freezes; the others wait and read."""

import json
import time
from collections.abc import Callable
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
    """What rank 0 says for all: the other ranks leave with its exit code, without a word."""

    def __init__(self, exit_code: int):
        super().__init__("rank 0 said why")
        self.exit_code = exit_code


def agree_on_run(where: Place, prepare: Callable[[], Frozen]) -> Frozen:
    """The run folder that rank 0 prepared, on every rank.

    Rank 0 may take long, to download a model: the others wait for as long as it lives.

    Raises:
        Exception: what rank 0 raised, on rank 0.
        SaidByRankZero: the same, on the other ranks.
        TransportError: rank 0 is gone, on the other ranks.
    """
    store = dist.PrefixStore("launch", _store(where))
    if where.rank == 0:
        try:
            frozen = prepare()
            frozen = Frozen(frozen.folder.resolve(), frozen.finished, frozen.made)
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
    """Rank 0 may host the store: it stays until every rank has read the answer."""
    store.set("run", json.dumps(answer))
    store.add("read", 1)
    while store.add("read", 0) < where.world:
        time.sleep(POLL_S / 10)


def _store(where: Place) -> dist.Store:
    """The store that the launcher provides, or one hosted by rank 0, as torch's env:// rendezvous does it."""
    slurm_rendezvous()
    store, _, _ = next(dist.rendezvous("env://", where.rank, where.world, timeout=timedelta(seconds=WAIT_S)))
    return store
