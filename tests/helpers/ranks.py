"""Run a function on several gloo ranks. Ranks are started once per world size and reused across tests."""

import atexit
import functools
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from sae_dist.core.place import Place
from sae_dist.distributed.network import choose_interface, local_store
from tests.helpers.pickles import refuse_pickles
from tests.helpers.warm import context


def run_ranks(function: Callable[..., Any], world: int, *args: Any, timeout_s: float = 120.0) -> list[Any]:
    """`function(*args)` on `world` ranks, each with a gloo process group; their results, by rank.

    `function` must be importable (top level of a test module). A child's error is raised here with its
    traceback; a world that failed or hung is thrown away, so that the next test gets a fresh one.
    """
    ranks = _start(world)
    try:
        return ranks.run(function, args, timeout_s)
    except BaseException:
        ranks.close()
        _start.cache_clear()
        raise


def close_worlds() -> None:
    """Let the next test start fresh processes."""
    for ranks in _started:
        ranks.close()
    _started.clear()
    _start.cache_clear()


class _Ranks:
    def __init__(self, world: int):
        self.store = local_store()
        self.pipes: list[Connection] = []
        self.processes = []
        for rank in range(world):
            ours, theirs = context().Pipe()
            process = context().Process(
                target=_serve, args=(rank, world, self.store.port, theirs), daemon=True
            )
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> list[Any]:
        for pipe in self.pipes:
            pipe.send((function, args))
        results, errors = [], []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(timeout_s if not errors else 2.0):
                errors.append(f"rank {rank}: no answer within {timeout_s} s")
                continue
            ok, value = pipe.recv()
            (results if ok else errors).append(value)
        if errors:
            raise RuntimeError("\n".join(errors))
        return results

    def close(self) -> None:
        for process in self.processes:
            process.kill()


@functools.cache
def _start(world: int) -> _Ranks:
    ranks = _Ranks(world)
    _started.append(ranks)
    atexit.register(ranks.close)
    return ranks


_started: list[_Ranks] = []


def _serve(rank: int, world: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    refuse_pickles()
    choose_interface(Place(rank, world, rank, world))
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            answer = True, function(*args)
        except BaseException:
            answer = False, f"rank {rank}:\n{traceback.format_exc()}"
        _end_groups()
        pipe.send(answer)


def _end_groups() -> None:
    """End the groups that a function made: each has a thread that wakes 100 times a second for ever."""
    for group in list(dist.distributed_c10d._world.pg_map):
        if group is not dist.group.WORLD:
            dist.destroy_process_group(group)
