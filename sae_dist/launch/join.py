"""The ranks inside torchrun or a Slurm step: rank 0 composes and freezes, the others wait and read."""

import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch.distributed as dist

from sae_dist.core.errors import Told, TransportError
from sae_dist.core.files import in_words
from sae_dist.core.place import Place
from sae_dist.distributed.network import store_of
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
    store = dist.PrefixStore("launch", store_of(where, WAIT_S))
    if where.rank == 0:
        try:
            frozen = prepare()
            frozen = replace(frozen, folder=frozen.folder.resolve())
        except Exception as error:
            _answer(store, where, {"exit_code": getattr(error, "exit_code", 1)})
            raise
        _answer(store, where, {"folder": str(frozen.folder), "finished": frozen.finished})
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
    frozen = Frozen(Path(answer["folder"]), bool(answer["finished"]))
    if not frozen.finished:
        check_ours(frozen.folder)
    # It never removes what it was told of: rank 0 alone knows what it made.
    return frozen


def check_ours(folder: Path) -> None:
    """Check that a folder whose name came over the network was frozen by this user.

    Raises:
        TransportError: it was not: somebody else answers in rank 0's place.
    """
    try:
        frozen = [*folder.glob("*.yaml"), *folder.glob("*/*.yaml")]
        # Not this process's own number: a file server may give files of all users to one.
        with tempfile.TemporaryFile(dir=folder) as own:
            mine = os.fstat(own.fileno()).st_uid
        if frozen and all(path.lstat().st_uid == mine for path in frozen):
            return
    except OSError as error:
        raise TransportError(
            f"rank 0 named {folder}, where this rank cannot write: {in_words(error)}"
        ) from None
    raise TransportError(f"rank 0 named {folder}, which is no folder that this user froze; it is not read")


def _answer(store: dist.Store, where: Place, answer: dict[str, object]) -> None:
    """Send the answer, and wait until every rank has read it: rank 0 may host the store."""
    store.set("run", json.dumps(answer))
    store.add("read", 1)
    while store.add("read", 0) < where.world:
        time.sleep(POLL_S / 10)
