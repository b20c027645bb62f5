"""A thread of each rank that ends it when it waits for what will not come.

On a GPU a rank that waits for another waits within a call that no exception reaches: a stream that is not
done. What ends it otherwise is the watchdog of torch, after `topology.timeout_s`, by an abort that names
neither rank nor reason. This thread looks at what other ranks have written, and at whether the main thread
moves.
"""

import sys
import threading
import time
from collections.abc import Callable
from types import FrameType

from sae_dist.core.errors import TransportError
from sae_dist.core.process import pause
from sae_dist.distributed.control import Control

LOOK_S = 1.0
GRACE_S = 15.0
"""How long a rank may stand still after another has failed: longer than `Checkpoints.leave` waits."""
STANDS_SHARE = 0.9
"""The share of `topology.timeout_s` after which standing still is a failure, before torch's watchdog acts."""


class Lookout:
    """The thread; it ends with the process, or once `control.ended` is set.

    It ends the rank, by `leave`, if the main thread has stood still

    - for `grace_s`, and another rank has failed, or
    - for half of `stands_still_s`, and a rank shows no sign of life any more, or
    - for `stands_still_s`: nothing else would end it.

    The last two leave out waits that have an end of their own: those in `pause`, and for another thread.

    Args:
        leave: tells a person why, and exits.
        stands_still_s: None where every wait has such an end, as with gloo.
    """

    def __init__(
        self,
        control: Control,
        rank: int,
        leave: Callable[[Exception], None],
        *,
        stands_still_s: float | None = None,
        grace_s: float = GRACE_S,
        look_s: float = LOOK_S,
    ):
        self.control, self.rank, self.leave = control, rank, leave
        self.stands_still_s, self.grace_s, self.look_s = stands_still_s, grace_s, look_s
        self.watched = threading.get_ident()
        self.thread = threading.Thread(target=self._run, name="lookout", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        place, since = _place(self.watched), time.monotonic()
        try:
            while not self.control.ended.wait(self.look_s):
                now, here = time.monotonic(), _place(self.watched)
                if here != place:
                    place, since = here, now
                elif error := self._reason(now - since):
                    self.leave(error)
                    return
        except TransportError:
            # The store is gone, and with it what could be learned; who waits for it says so.
            return

    def _reason(self, stood_s: float) -> Exception | None:
        """Return why a rank that has stood still for so long must end; None: it need not."""
        if stood_s >= self.grace_s and (failure := self.control.failure()):
            return TransportError(failure)
        most = self.stands_still_s
        if most is None or stood_s < most / 2 or _ends_by_itself(self.watched):
            return None
        if stood_s < most and not self.control.silent(self.rank):
            return None
        # The ranks without a sign of life are named by `tell`.
        waited = f"rank {self.rank} waited {stood_s:.0f} s for a device or for other ranks"
        return self.control.tell(self.rank, TransportError(waited))


def start_lookout(control: Control, rank: int, on_gpu: bool, leave: Callable[[Exception], None]) -> Lookout:
    """Start the thread of a rank, to watch the thread that calls."""
    return Lookout(control, rank, leave, stands_still_s=STANDS_SHARE * control.timeout_s if on_gpu else None)


def _ends_by_itself(thread: int) -> bool:
    """Return whether a thread is in a wait that looks at the time, and at what other ranks have written."""
    frame = sys._current_frames().get(thread)
    return frame is None or frame.f_code is pause.__code__ or frame.f_code.co_filename == threading.__file__


def _place(thread: int) -> list[tuple[int, int]]:
    """Return where a thread is: each of its frames, by number, with the instruction it has come to."""
    frame: FrameType | None = sys._current_frames().get(thread)
    found = []
    while frame is not None:
        found.append((id(frame), frame.f_lasti))
        frame = frame.f_back
    return found
