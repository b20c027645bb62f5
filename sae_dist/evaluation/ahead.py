"""Prefetching: the next items of an iterator are computed in a thread while the last one is used."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")
END = object()


def ahead(items: Iterator[Item], depth: int = 2) -> Generator[Item, None, None]:
    """Yield the same items in the same order; at most `depth` are computed ahead.

    What `items` raises is raised here. Closing this iterator stops the thread after its current item.
    """
    ready: queue.Queue = queue.Queue(depth)
    closed = threading.Event()

    def put(entry: object) -> bool:
        while not closed.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((END, None))
        except BaseException as error:
            put((END, error))

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
    finally:
        closed.set()
        worker.join()
