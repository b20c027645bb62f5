"""A process in which nothing may be unpickled: what a socket or a file brings is data."""

import pickle
from typing import Any

from torch.distributed import distributed_c10d


class _Refused(pickle.Unpickler):
    def load(self) -> Any:
        raise AssertionError("a pickle is read")


def refuse_pickles() -> None:
    """Make reading a pickle an error in this process, from now on. multiprocessing keeps its own way."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle is read")

    pickle.loads = pickle.load = refuse
    pickle.Unpickler = distributed_c10d._unpickler = _Refused
