"""Processes forked from one that has imported everything: a new interpreter costs seconds of imports.

The one they are forked from (`preloaded.py`) has no threads and no state. It serves one pytest process.
"""

import functools
import multiprocessing
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import torch

from sae_dist.distributed.network import local_store
from tests.helpers.pickles import refuse_pickles

GRACE_S = 20.0


@functools.cache
def context() -> ForkServerContext:
    """Makes such processes, of functions at the top level of a module."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.helpers.preloaded"])
    return found


class Command:
    """`sae-dist ...` in `folder`: one process, or the ranks of a run, started as torchrun does.

    `pid`, `poll`, `send_signal` and `communicate` are subprocess.Popen's.

    Args:
        plots: draw what a run draws at its end, a third to two thirds of what one of a few steps costs;
            without, the curves of training are left out, and each other figure is a file of a few bytes.
        before: called in each process first, in its folder, with its variables.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        ranks: int = 1,
        plots: bool = False,
        before: Callable[[], None] | None = None,
    ):
        self.arguments = arguments
        self.said = tempfile.TemporaryDirectory()
        shared: dict[str, str] = {}
        if ranks > 1:
            self.store = local_store()
            shared = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1"}
            shared |= {"MASTER_PORT": str(self.store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        self.processes = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | shared | own
            process = context().Process(
                target=_main,
                args=(folder, arguments, dict(environment), Path(self.said.name), plots, before),
                daemon=True,
            )
            process.start()
            self.processes.append(process)
        self.pid = self.processes[0].pid

    def poll(self) -> int | None:
        """None while all ranks run well; then 0, or the exit code of one that failed."""
        codes = [process.exitcode for process in self.processes]
        failed = [code for code in codes if code]
        return failed[0] if failed else None if None in codes else 0

    def send_signal(self, number: int) -> None:
        """To all ranks."""
        for process in self.processes:
            os.kill(process.pid, number)

    def communicate(self, timeout: float = 600, grace: float = GRACE_S) -> tuple[str, str]:
        """Wait for the end, or for a rank that fails; what was said on stdout and stderr.

        Args:
            grace: seconds that each of the others then has, as launchers give, before it is killed.
        """
        until = time.monotonic() + timeout
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        code = self.poll()
        for process in self.processes:
            process.join(grace if code else 0)
            process.kill()
            process.join()
        out, err = ((Path(self.said.name) / name).read_text() for name in ("stdout", "stderr"))
        self.said.cleanup()
        assert code is not None, f"no end within {timeout} s:\n{out}\n{err}"
        return out, err


def warm(
    folder: Path, *arguments: str, ranks: int = 1, timeout_s: float = 600, plots: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run a `Command` to its end."""
    command = Command(folder, *arguments, ranks=ranks, plots=plots)
    out, err = command.communicate(timeout_s)
    code = command.poll()
    assert code is not None
    return subprocess.CompletedProcess(arguments, code, out, err)


def _main(
    folder: Path,
    arguments: tuple[str, ...],
    environment: dict[str, str],
    said: Path,
    plots: bool,
    before: Callable[[], None] | None,
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(said / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    refuse_pickles()
    if before is not None:
        before()
    from matplotlib.figure import Figure

    from sae_dist import cli
    from sae_dist.evaluation import summary

    if not plots:
        summary.plot_curves = lambda folder: []
        Figure.savefig = _no_figure
    raise SystemExit(cli.main(list(arguments)))


def _no_figure(figure: Any, path: Path, **settings: Any) -> None:
    path.write_bytes(b"not drawn")
