"""Figures of an evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_dist.analysis.recovery import MATCHED_ABOVE, Recovery

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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


def plot_recovery(
    recovery: Recovery, truth_GD: Tensor, W_dec_FD: Tensor, names: tuple[str, ...], path: Path
) -> None:
    """True features beside what was learnt: cosines of the matched pairs; arrows in 2 dimensions, else a map.

    Args:
        truth_GD: true directions, unit rows.
        names: of the true features; empty: they are numbered.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    matched_G = recovery.matched_G.sort(descending=True).values
    above = float((matched_G > MATCHED_ABOVE).double().mean())
    left.plot(range(1, len(matched_G) + 1), matched_G, marker="." if len(matched_G) < 50 else None)
    left.axhline(MATCHED_ABOVE, color="grey", linestyle=":")
    left.set(
        xlabel="true features, best matched first",
        ylabel="cosine with the matched decoder row",
        ylim=(min(0.0, float(matched_G.min())), 1.02),
        title=f"mean {matched_G.mean():.3f}; {above:.1%} above {MATCHED_ABOVE}",
    )
    if truth_GD.shape[1] == 2:
        _arrows(right, truth_GD, W_dec_FD, names)
    else:
        best_first = recovery.matched_G[recovery.feature_M].argsort(descending=True)
        cosine_MM = recovery.cosine_GF[recovery.feature_M[best_first]][:, recovery.latent_M[best_first]]
        shown = right.imshow(cosine_MM.abs().numpy(), vmin=0, vmax=1, cmap="magma")
        figure.colorbar(shown, ax=right, label="|cosine|")
        right.set(
            xlabel="latents, in the order of their features", ylabel="true features, best matched first"
        )
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def _arrows(axes: "Axes", truth_GD: Tensor, W_dec_FD: Tensor, names: tuple[str, ...]) -> None:
    """Directions in the plane: what is true in wide grey, what was learnt in thin colour."""
    learnt_FD = torch.nn.functional.normalize(W_dec_FD.double(), dim=1)
    for rows, color, width, label in (
        (truth_GD, "lightgrey", 0.02, "true feature"),
        (learnt_FD, "tab:red", 0.006, "decoder row"),
    ):
        zeros = torch.zeros(len(rows))
        axes.quiver(
            zeros, zeros, rows[:, 0], rows[:, 1],
            angles="xy", scale_units="xy", scale=1, color=color, width=width, label=label,
        )  # fmt: skip
    for number, direction in enumerate(truth_GD.tolist()):
        name = names[number] if names else str(number)
        axes.text(1.25 * direction[0], 1.15 * direction[1], name, ha="center", va="center")
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    axes.legend(loc="lower right")
