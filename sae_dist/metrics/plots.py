"""Training curves, drawn as PNG files."""

from pathlib import Path

from sae_dist.core.run_folder import METRICS, PLOTS
from sae_dist.metrics.drawing import plain_settings
from sae_dist.metrics.jsonl import read_rows

CURVES = {
    "loss/fvu": ("fraction of variance unexplained", "log"),
    "sparsity/l0": ("active latents per token", "linear"),
    "latents/dead_fraction": ("fraction of latents dead", "linear"),
    "perf/tokens_per_second": ("tokens per second", "linear"),
}


@plain_settings()
def plot_curves(folder: Path) -> list[Path]:
    """Draw the curves of `folder`/metrics.jsonl over tokens into `folder`/plots.

    Returns:
        The files written: one for each curve that has values.
    """
    from matplotlib.figure import Figure

    rows = read_rows(folder / METRICS)
    (folder / PLOTS).mkdir(exist_ok=True)
    written = []
    for name, (label, scale) in CURVES.items():
        points = [(row["tokens"], row[name]) for row in rows if row.get(name) is not None]
        if not points:
            continue
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        tokens, values = zip(*points, strict=True)
        axes.plot(tokens, values, marker="." if len(points) < 20 else None)
        positive = all(v > 0 for v in values)
        axes.set(xlabel="tokens", ylabel=label, yscale=scale if positive else "linear")
        axes.grid(alpha=0.3)
        path = folder / PLOTS / f"{name.replace('/', '_')}.png"
        figure.savefig(path, dpi=120)
        written.append(path)
    return written
