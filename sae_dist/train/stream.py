"""One stream of activations for every dictionary that a process trains.

Letters: as core.types; C columns of the stream: those of all hooks, side by side.
"""

import time
from typing import Any

from torch import Tensor

from sae_dist.shuffle.lanes import Shuffle


class SharedStream:
    """A shuffle that is drawn from once per step, whichever dictionary asks first.

    Attributes:
        seconds: spent in drawing, which is the LLM's time where there are no producers.
    """

    def __init__(self, shuffle: Shuffle):
        self.shuffle, self.seconds = shuffle, 0.0
        self.step: int | None = None
        self.restored = False

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this rank's raw rows [b, C] of `step`, and their ids [b]; steps never go back."""
        if step != self.step:
            began = time.perf_counter()
            self.rows = self.shuffle.draw(step)
            self.step = step
            self.seconds += time.perf_counter() - began
        return self.rows

    def restore(self, states: dict[str, Any]) -> None:
        """Restore the lanes' states of a checkpoint, once: dictionaries of a grid are at the same step."""
        if not self.restored:
            self.shuffle.restore(states)
            self.restored = True


class Columns:
    """The part of the stream that one dictionary reads: the columns of its hook.

    Args:
        widths: (D,) of an autoencoder, (D, E) of a transcoder, whose target's columns follow its input's.
    """

    def __init__(self, stream: SharedStream, columns: slice, widths: tuple[int, ...]):
        self.stream, self.columns, self.widths = stream, columns, widths
        self.counts, self.state, self.restore = stream.shuffle.counts, stream.shuffle.state, stream.restore

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Return this rank's raw rows [b, sum(widths)] of `step`, and their ids [b]."""
        rows, ids = self.stream.draw(step)
        return rows[:, self.columns], ids

    def seconds(self) -> float:
        """Return the seconds that this process spent in waiting for the stream, or in computing it."""
        return self.stream.seconds
