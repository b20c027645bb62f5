"""The command `sae-dist bench`: the door to the benchmarks."""

from sae_dist.bench.command import USAGE, bench


def help_text() -> str:
    """Return the list of benchmarks."""
    return USAGE


def run(arguments: list[str]) -> None:
    """Run a benchmark.

    Raises:
        SaeDistError: see `core.errors`.
    """
    bench(arguments)
