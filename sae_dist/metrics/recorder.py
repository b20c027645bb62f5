"""Scalars that are collected on the device during steps, and reduced over window and ranks when flushed.

Names are grouped `loss/ sparsity/ latents/ optim/ perf/ stream/`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

REDUCTIONS = ("sum", "mean", "max", "last")


class Recorder:
    """The scalars since the last flush, one running value per name.

    Args:
        reduce: `reduce(values, "sum" | "max")` over the ranks that record. Every rank must have
            recorded the same names with the same reductions when it flushes.
    """

    def __init__(self, reduce: Callable[[Tensor, str], Tensor]):
        self._reduce = reduce
        self._clear()

    def record(self, name: str, value: Tensor | float, reduction: str) -> None:
        """Record one value, without a transfer or a wait.

        sum and max are over window and ranks; mean is the mean of all recorded values, with each
        call of each rank one value; last is this rank's latest value, equal on every rank.
        """
        assert reduction in REDUCTIONS and self._kinds.setdefault(name, reduction) == reduction, name
        if isinstance(value, Tensor):
            value = value.detach().to(torch.float64, copy=True).reshape(())
        if name not in self._values or reduction == "last":
            self._values[name] = value
        elif reduction == "max":
            self._values[name] = _maximum(self._values[name], value)
        else:
            self._values[name] = self._values[name] + value
        self._counts[name] = self._counts.get(name, 0) + 1

    def flush(self) -> dict[str, float]:
        """Reduce all values, copy them to the host once, and return them by name; start empty again.

        One collective serves sums and means, one maxima.
        """
        names = {kind: sorted(n for n in self._kinds if self._kinds[n] == kind) for kind in REDUCTIONS}
        devices = [v.device for v in self._values.values() if isinstance(v, Tensor)]
        device = next((d for d in devices if d.type != "cpu"), torch.device("cpu"))

        def stack(values: list[Tensor | float]) -> Tensor:
            # Values on the host are copied to the device in one transfer.
            host = torch.tensor([0.0 if isinstance(v, Tensor) else v for v in values], dtype=torch.float64)
            moved = host.to(device)
            parts = [
                v.to(device, torch.float64) if isinstance(v, Tensor) else moved[i]
                for i, v in enumerate(values)
            ]
            return torch.stack(parts)

        def value_of(kind: str) -> list[Tensor | float]:
            return [self._values[n] for n in names[kind]]

        parts = []
        added = value_of("sum") + value_of("mean") + [float(self._counts[n]) for n in names["mean"]]
        if added:
            parts.append(self._reduce(stack(added), "sum"))
        if names["max"]:
            parts.append(self._reduce(stack(value_of("max")), "max"))
        if names["last"]:
            parts.append(stack(value_of("last")))
        numbers = iter(torch.cat(parts).tolist() if parts else [])
        result = {n: next(numbers) for n in names["sum"]}
        means = [next(numbers) for _ in names["mean"]]
        result |= {n: total / next(numbers) for n, total in zip(names["mean"], means, strict=True)}
        result |= {n: next(numbers) for n in names["max"] + names["last"]}
        self._clear()
        return result

    def _clear(self) -> None:
        self._kinds: dict[str, str] = {}
        self._values: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}


def _maximum(a: Tensor | float, b: Tensor | float) -> Tensor | float:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        device = a.device if isinstance(a, Tensor) else b.device  # type: ignore[union-attr]
        a, b = (torch.as_tensor(v, dtype=torch.float64, device=device) for v in (a, b))
        return torch.maximum(a, b)
    return max(a, b)
