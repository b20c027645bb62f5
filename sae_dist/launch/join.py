"""Inside torchrun or a Slurm step: rank 0 composes and freezes; the others wait and read."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from sae_dist.core.errors import ConfigError, Told
from sae_dist.dist.runtime import Place, slurm_rendezvous

WAIT_S = 600.0


def agree_on_folder(where: Place, prepare: Callable[[], Path | None]) -> Path | None:
    """The run folder that rank 0 prepared, on every rank; None: there is nothing to do.

    Raises:
        ConfigError: what rank 0 raised, on rank 0.
        Told: the same, on the other ranks.
    """
    store = dist.PrefixStore("launch", _store(where))
    if where.rank == 0:
        try:
            folder = prepare()
        except ConfigError:
            store.set("folder", "error")
            _wait_for_all(store, where)
            raise
        store.set("folder", f"ok {folder.resolve() if folder else ''}")
        _wait_for_all(store, where)
        return folder
    store.wait(["folder"], timedelta(seconds=WAIT_S))
    answer = store.get("folder").decode()
    store.add("read", 1)
    if answer == "error":
        raise Told("rank 0 said why")
    path = answer.removeprefix("ok ")
    return Path(path) if path else None


def _wait_for_all(store: dist.Store, where: Place) -> None:
    """Rank 0 may host the store: it stays until every rank has read the answer."""
    store.add("read", 1)
    while store.add("read", 0) < where.world:
        pass


def _store(where: Place) -> dist.Store:
    """The store that the launcher provides, or one hosted by rank 0, as torch's env:// rendezvous does it."""
    slurm_rendezvous()
    store, _, _ = next(dist.rendezvous("env://", where.rank, where.world, timeout=timedelta(seconds=WAIT_S)))
    return store
