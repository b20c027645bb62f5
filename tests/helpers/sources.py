"""Sources of activations for tests: one whose order is known, and a folder served over HTTP."""

import contextlib
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

from sae_dist.core.types import ActivationChunk, Position


class Numbers:
    """Activations that are their own row numbers, in every column; counts the chunks it was asked for."""

    def __init__(self, lanes: int, rows: int, chunks: int = 10**6, width: int = 1):
        self.lanes, self.rows, self.chunks, self.width, self.asked = lanes, rows, chunks, width, 0

    def open(self, lane: int, start: Position | None) -> Iterator[ActivationChunk]:
        for index in range(start["chunk"] if start else 0, self.chunks):
            self.asked += 1
            number = index * self.lanes + lane
            ids = torch.arange(number * self.rows, (number + 1) * self.rows)
            rows_RD = ids[:, None].double().expand(-1, self.width)
            yield ActivationChunk(number, lane, rows_RD, ids, {"chunk": index}, excluded=1)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder, over real HTTP."""
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
