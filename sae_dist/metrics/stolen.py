"""Processor time that a virtual machine asked for and its host gave to others: times say little then."""

from typing import Any

import psutil

SHOWN = 0.02
"""Less than this share is not worth a word."""
BUSY = ("user", "nice", "system", "irq", "softirq")


def share(before: Any, now: Any) -> float:
    """Stolen time between two readings of `psutil.cpu_times`, of the time asked for; 0 if unknown."""
    spent = {name: getattr(now, name, 0.0) - getattr(before, name, 0.0) for name in (*BUSY, "steal")}
    asked = sum(spent.values())
    return spent["steal"] / asked if asked > 0 else 0.0


class Stolen:
    """What was stolen since this was made."""

    def __init__(self) -> None:
        self.before = psutil.cpu_times()

    def remark(self) -> str:
        """For the end of the line under a table of times; empty where little was stolen."""
        found = share(self.before, psutil.cpu_times())
        return f"; the host gave {found:.0%} of the processor time to others" if found >= SHOWN else ""
