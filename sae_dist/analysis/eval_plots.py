"""Figures of eval.json."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_evaluation(result: dict[str, Any], folder: Path) -> None:
    """eval_redundancy.png, eval_probes.png, eval_absorption.png, eval_controls.png: of what there is."""
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
