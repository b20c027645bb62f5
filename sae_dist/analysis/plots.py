"""Figures of an evaluation."""

from pathlib import Path
from typing import Any


def plot_density(density: dict[str, Any], path: Path) -> None:
    """Histogram of how often latents fire, from `quality.evaluate`'s `density`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.stairs(density["latents"], density["log10_edges"], fill=True)
    axes.set(
        xlabel="log10 of the share of tokens on which a latent fires",
        ylabel="latents",
        title=f"{density['silent']} of {sum(density['latents']) + density['silent']} latents never fired",
    )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)
