"""Alerts about a run that nobody is watching: printed on the console, and sent by W&B."""

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Any, Protocol

from sae_dist.metrics.nvml import reasons_in_words

DEAD_RISE = 0.1
"""A rise of the share of dead latents above its lowest value so far."""
SLOW, WINDOW = 0.25, 20
"""A rate below this share of the median tokens/s of the last WINDOW rows is slow."""
STALL_S, STALL_ROWS = 60.0, 10
"""A stall: no row for STALL_S, and for STALL_ROWS times the longest time between rows."""
AGAIN_S = 600.0
REPEATED = 0.01
"""A share of rows that are repeats, above which the run learns from fewer rows than it counts."""


class Listener(Protocol):
    """A receiver of alerts: the console or W&B."""

    def alert(self, title: str, text: str) -> None: ...


class Alerts:
    """A sink that checks each row of metrics, and the time between rows.

    It alerts to non-finite numbers, dead latents that rise, activations that are repeated, tokens/s that
    fall to a quarter, a long time without a row, a GPU that throttles for another reason than its power cap,
    and XID errors of a GPU.

    Args:
        name: the dictionary's, if several are trained; added to each alert.
    """

    def __init__(self, listeners: Sequence[Listener], name: str | None = None):
        self.listeners, self.name = listeners, name
        self.fewest_dead = math.inf
        self.rates: deque[float] = deque(maxlen=WINDOW)
        self.last_alert: dict[str, float] = {}
        self.xids: dict[str, float] = {}
        self.last_row: float | None = None
        self.longest_s = 0.0
        self.step = 0
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="alerts", daemon=True)

    def write(self, row: dict[str, Any]) -> None:
        """Check a row of metrics, and start the clock."""
        now, before = time.monotonic(), self.last_row
        self.last_row, self.step = now, row["step"]
        if before is None:
            self.thread.start()
        else:
            self.longest_s = max(self.longest_s, now - before)
        broken = [key for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)]
        if broken:
            self.alert("numbers are not finite", f"{', '.join(broken)} at step {self.step}")
        self._dead(row.get("latents/dead_fraction"))
        self._rate(row.get("perf/tokens_per_second"))
        self._repeated(row.get("stream/repeated_rows", 0.0), row.get("stream/read_rows", 0.0))
        self._gpus(row)

    def alert(self, title: str, text: str) -> None:
        """Pass an alert on to the listeners, the same title at most every ten minutes."""
        now = time.monotonic()
        if now - self.last_alert.get(title, -math.inf) < AGAIN_S:
            return
        self.last_alert[title] = now
        for listener in self.listeners:
            listener.alert(title, text if self.name is None else f"{self.name}: {text}")

    def close(self) -> None:
        """Stop checking and end the thread."""
        self.closed.set()
        if self.thread.ident is not None:
            self.thread.join()

    def _dead(self, share: float | None) -> None:
        if share is None or not math.isfinite(share):
            return
        if share >= self.fewest_dead + DEAD_RISE:
            text = (
                f"{share:.1%} of the latents are dead at step {self.step}; {self.fewest_dead:.1%} were before"
            )
            self.alert("dead latents are rising", text)
            self.fewest_dead = share
        self.fewest_dead = min(self.fewest_dead, share)

    def _rate(self, rate: float | None) -> None:
        if rate is None:
            return
        if len(self.rates) == WINDOW and rate < SLOW * median(self.rates):
            text = f"{rate:,.0f} tokens/s at step {self.step}; {median(self.rates):,.0f} were usual"
            self.alert("training has become slow", text)
        self.rates.append(rate)

    def _repeated(self, repeated: float, read: float) -> None:
        if repeated > REPEATED * read:
            text = (
                f"{repeated / read:.1%} of the activations are repeats at step {self.step}: too many are "
                "longer than tokens.max_norm_multiple allows, as the first token of each document may be; "
                "begin anew with tokens.spare=0.25, longer documents, or a larger tokens.max_norm_multiple"
            )
            self.alert("activations are repeated", text)

    def _gpus(self, row: dict[str, Any]) -> None:
        for key, value in row.items():
            if key.count("/") != 2 or not key.startswith("gpu/"):
                continue
            gpu, name = key.split("/")[1:]
            if name == "throttled" and value:
                reasons = reasons_in_words(int(row[f"gpu/{gpu}/clock_event_reasons"]))
                self.alert(f"GPU {gpu} is throttled", f"{reasons}, at step {self.step}")
            if name == "xids" and value > self.xids.get(gpu, 0):
                self.xids[gpu] = value
                text = f"XID {row[f'gpu/{gpu}/xid']:.0f}, {value:.0f} so far, at step {self.step}"
                self.alert(f"GPU {gpu} reports an error", text)

    def _watch(self) -> None:
        """Check in the thread whether rows arrive as often as before."""
        while not self.closed.wait(min(STALL_S, 1.0)):
            assert self.last_row is not None
            silent_s = time.monotonic() - self.last_row
            if silent_s > max(STALL_S, STALL_ROWS * self.longest_s):
                self.alert("training stands still", f"no metrics for {silent_s:.0f} s after step {self.step}")
