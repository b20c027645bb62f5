"""Plots of an evaluation: of eval.json, of the density, and of recovered features.

Letters: as core.types; M matched pairs of a true feature and a latent.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sae_dist.evaluation.quality.recovery import MATCHED_ABOVE, Recovery
from sae_dist.metrics.drawing import plain_settings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage


@plain_settings()
def plot_evaluation(result: dict[str, Any], folder: Path) -> None:
    """Draw eval_redundancy.png, eval_probes.png, eval_absorption.png and eval_controls.png, if measured."""
    figures = {
        "redundancy": _redundancy,
        "probes": _probes,
        "absorption": _absorption,
        "controls": _controls,
    }
    folder.mkdir(exist_ok=True)
    for key, draw in figures.items():
        path = folder / f"eval_{key}.png"
        if result.get(key) is None:
            path.unlink(missing_ok=True)
            continue
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        draw(figure.subplots(), result[key])
        figure.savefig(path, dpi=120)


def _redundancy(axes: "Axes", found: dict[str, Any]) -> None:
    axes.stairs(found["latents"], found["cosine_edges"], fill=True)
    axes.set(
        xlabel="largest cosine of a decoder row with another",
        ylabel="latents",
        title=f"{found['above_0.7']:.1%} above 0.7, {found['above_0.9']:.1%} above 0.9",
    )


def _probes(axes: "Axes", found: dict[str, Any]) -> None:
    tasks = {name: each for name, each in found["tasks"].items() if "raw" in each}
    arms = list(found["mean"] or [])
    for number, arm in enumerate(arms):
        places = [place + (number - (len(arms) - 1) / 2) * 0.8 / len(arms) for place in range(len(tasks))]
        label = "activation" if arm == "raw" else f"{arm[2:]} latents"
        axes.bar(places, [each[arm]["auc"] for each in tasks.values()], 0.8 / len(arms), label=label)
    axes.set_xticks(range(len(tasks)), list(tasks), rotation=30)
    axes.set(ylabel="AUC on the test part", ylim=(0.4, 1.02), title="k-sparse probing")
    axes.legend(loc="lower right")


def _absorption(axes: "Axes", found: dict[str, Any]) -> None:
    letters = found["letters"]
    axes.bar(list(letters), [each["rate"] for each in letters.values()])
    axes.set(
        xlabel="first letter",
        ylabel="share of words absorbed",
        title=f"mean {found['rate']:.1%}; {found['latents']:.1f} latents per letter",
    )


def _controls(axes: "Axes", found: dict[str, Any]) -> None:
    arms = {name: each["fvu"] for name, each in found.items() if isinstance(each, dict)}
    axes.bar([name.replace("_", "\n") for name in arms], list(arms.values()))
    axes.axhline(1, color="grey", linestyle=":")
    axes.set(ylabel="FVU", title="the same dictionary on other activations")


@plain_settings()
def plot_density(density: dict[str, Any], path: Path) -> None:
    """Draw a histogram of how often latents fire, from the evaluation's `density`."""
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


@plain_settings()
def plot_recovery(
    recovery: Recovery, truth_GD: Tensor, W_dec_FD: Tensor, names: tuple[str, ...], path: Path
) -> None:
    """Draw the cosines of matched pairs, and true and learnt directions: arrows in the plane, else a map.

    Args:
        truth_GD: true directions, unit rows.
        names: of the true features; empty: they are numbered.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    _matched(left, recovery)
    if truth_GD.shape[1] == 2:
        _arrows(right, truth_GD, W_dec_FD, names)
    else:
        figure.colorbar(_cosines(right, recovery), ax=right, label="|cosine|")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def _matched(axes: "Axes", recovery: Recovery) -> None:
    """Draw the cosine of each true feature with its matched decoder row, best first."""
    matched_G = recovery.matched_G.sort(descending=True).values
    above = float((matched_G > MATCHED_ABOVE).double().mean())
    axes.plot(range(1, len(matched_G) + 1), matched_G, marker="." if len(matched_G) < 50 else None)
    axes.axhline(MATCHED_ABOVE, color="grey", linestyle=":")
    axes.set(
        xlabel="true features, best matched first",
        ylabel="cosine with the matched decoder row",
        ylim=(min(0.0, float(matched_G.min())), 1.02),
        title=f"mean {matched_G.mean():.3f}; {above:.1%} above {MATCHED_ABOVE}",
    )


def _cosines(axes: "Axes", recovery: Recovery) -> "AxesImage":
    """Draw the cosines of all matched features and latents as a map, best matched first."""
    best_first = recovery.matched_G[recovery.feature_M].argsort(descending=True)
    cosine_MM = recovery.cosine_GF[recovery.feature_M[best_first]][:, recovery.latent_M[best_first]]
    axes.set(xlabel="latents, in the order of their features", ylabel="true features, best matched first")
    return axes.imshow(cosine_MM.abs().numpy(), vmin=0, vmax=1, cmap="magma")


def _arrows(axes: "Axes", truth_GD: Tensor, W_dec_FD: Tensor, names: tuple[str, ...]) -> None:
    """Draw directions in the plane: true features in wide grey, decoder rows in thin colour."""
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
