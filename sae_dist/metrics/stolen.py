"""Processor time that a virtual machine asked for and its host gave to others: it makes times unreliable."""

from typing import Any

import psutil

SHOWN = 0.02
"""A smaller share is not reported."""
BUSY = ("user", "nice", "system", "irq", "softirq")


def share(before: Any, now: Any) -> float:
    """Return the stolen share of the time asked for between two `psutil.cpu_times`; 0 if unknown."""
    spent = {name: getattr(now, name, 0.0) - getattr(before, name, 0.0) for name in (*BUSY, "steal")}
    asked = sum(spent.values())
    return spent["steal"] / asked if asked > 0 else 0.0


class Stolen:
    """The processor time stolen since this object was made."""

    def __init__(self) -> None:
        self.before = psutil.cpu_times()

    def remark(self) -> str:
        """Return the end of the line under a table of times; empty if little was stolen."""
        found = share(self.before, psutil.cpu_times())
        return f"; the host gave {found:.0%} of the processor time to others" if found >= SHOWN else ""
