"""A few steps under torch's profiler, by `metrics.profile`: a trace for chrome://tracing or Perfetto."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sae_dist.metrics.clock import PhaseClock


class ProfileWindow:
    """Traces `number` steps from `first` on, counted from 1; of a grid all dictionaries of those steps.

    Args:
        path: where the trace goes, `.json.gz`.
        clock: shows the phases by name meanwhile.
    """

    def __init__(self, first: int, number: int, path: Path, device: torch.device, clock: PhaseClock):
        self.first, self.last, self.path, self.clock = first, first + number - 1, path, clock
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler: profile | None = profile(activities=activities)
        self.running = False

    def before(self, step: int) -> None:
        """A step is about to begin."""
        if step == self.first and self.profiler is not None:
            self.profiler.start()
            self.running = self.clock.profiling = True

    def after(self, step: int) -> None:
        """A step has ended; after the last one the trace is written, which takes seconds."""
        if step >= self.last:
            self.close()

    def close(self) -> None:
        """Stop, and write what there is; a run may end within the window."""
        if self.profiler is None or not self.running:
            return
        self.profiler.stop()
        self.running = self.clock.profiling = False
        self.path.parent.mkdir(exist_ok=True)
        self.profiler.export_chrome_trace(str(self.path))
        self.profiler = None
