"""One stream of activations for every dictionary that a process trains."""

import time
from typing import Any, Protocol

from torch import Tensor


class Shuffle(Protocol):
    """See `shuffle.lanes`."""

    def draw(self, step: int) -> tuple[Tensor, Tensor]: ...

    def counts(self) -> Any: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, states: dict[str, Any]) -> None: ...


class SharedStream:
    """Draws each step once, whoever asks first.

    Attributes:
        seconds: spent in drawing, which where there are no producers is the LLM's time.
    """

    def __init__(self, shuffle: Shuffle):
        self.shuffle, self.seconds = shuffle, 0.0
        self.step: int | None = None
        self.restored = False

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """This rank's raw rows [b, columns] of `step`, and their ids [b]; steps never go back."""
        if step != self.step:
            began = time.perf_counter()
            self.rows = self.shuffle.draw(step)
            self.step = step
            self.seconds += time.perf_counter() - began
        return self.rows

    def restore(self, states: dict[str, Any]) -> None:
        """Go to the lanes' states of a checkpoint: the dictionaries of a grid all stand at the same step."""
        if not self.restored:
            self.shuffle.restore(states)
            self.restored = True


class Columns:
    """What one dictionary sees of the stream: the columns of its hook."""

    def __init__(self, stream: SharedStream, columns: slice):
        self.stream, self.columns = stream, columns
        self.counts, self.state, self.restore = stream.shuffle.counts, stream.shuffle.state, stream.restore

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """See `SharedStream.draw`."""
        rows, ids = self.stream.draw(step)
        return rows[:, self.columns], ids

    def seconds(self) -> float:
        """Spent by this process in waiting for the stream, or in computing it."""
        return self.stream.seconds
