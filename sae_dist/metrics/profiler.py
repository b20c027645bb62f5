"""A few steps under torch's profiler, by `metrics.profile`: a trace for chrome://tracing or Perfetto."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sae_dist.core.text import first_line, print_line
from sae_dist.metrics.clock import PhaseClock


class ProfileWindow:
    """A profile of `number` steps from `first` on, counted from 1; in a grid, of all its dictionaries.

    Args:
        path: the file of the trace, `.json.gz`.
        clock: shows its phases by name in the trace.
    """

    def __init__(self, first: int, number: int, path: Path, device: torch.device, clock: PhaseClock):
        self.first, self.last, self.path, self.clock = first, first + number - 1, path, clock
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self.profiler: profile | None = profile(activities=activities)
        self.running = False

    def before(self, step: int) -> None:
        """Start the profiler if the window begins with this step."""
        if step == self.first and self.profiler is not None:
            self.profiler.start()
            self.running = self.clock.profiling = True

    def after(self, step: int) -> None:
        """Write the trace, which takes seconds, if the window ends with this step."""
        if step >= self.last:
            self.close()

    def close(self) -> None:
        """Stop the profiler and write what it has; a run may end inside the window."""
        if self.profiler is None or not self.running:
            return
        profiler, self.profiler = self.profiler, None
        profiler.stop()
        self.running = self.clock.profiling = False
        try:
            self.path.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(self.path))
        except (OSError, RuntimeError) as error:
            print_line(f"no profile: cannot write {self.path}: {first_line(error)}")
