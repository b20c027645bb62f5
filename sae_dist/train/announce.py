"""The lines that training prints before its first step: topology, length, learning rates, memory."""

from sae_dist.config.needs import consumer_memory
from sae_dist.config.rules.checkpoint import checkpoint_bytes
from sae_dist.core.staging import STAGING_BYTES
from sae_dist.core.text import gib, print_line
from sae_dist.core.types import LlmFacts
from sae_dist.train.end import left_out
from sae_dist.train.state import Run

MEAN_SHARE = 0.5
"""The mean's share of the squared norm above which FVU is a fifth higher than with the mean subtracted."""


def announce(runs: list[Run], facts: LlmFacts | None) -> None:
    """Print what was chosen, and what will not be measured, once, before the first step.

    Args:
        facts: of the LLM; None if there is none.
    """
    first, cfg = runs[0], runs[0].cfg
    print_line(
        f"{first.folder if len(runs) == 1 else first.folder.parent}\n  {first.topology.describe()}; "
        f"{first.device.type}, {cfg.precision}, {cfg.kernels} kernels\n  {first.steps} steps of {cfg.batch}, "
        f"from step {first.progress.step}"
    )
    for run in runs:
        sae, lr = run.cfg.sae, run.cfg.optim.lr
        law = f"the law for {run.steps} steps and {sae.num_latents} latents" if lr is None else "given"
        scales = ", ".join(f"{scale:.4g}" for scale in run.scales)
        name = f"{run.folder.name}: " if len(runs) > 1 else ""
        print_line(f"  {name}lr {run.lr:.2e} ({law}); activations x {scales}")
        for share in run.mean_shares:
            if share > MEAN_SHARE:
                print_line(f"  {name}{mean_in_words(share)}")
    print_line(f"  {memory_in_words(runs)}")
    if cfg.optim.kind == "offload" and first.device.type != "cpu":
        print_line(f"  {offload_in_words(runs)}")
    if cfg.metrics.telemetry_s is not None:
        gpus = "GPUs and hosts" if first.device.type == "cuda" else "hosts; no GPU in this run"
        print_line(f"  telemetry every {cfg.metrics.telemetry_s:g} s: {gpus}")
    for line in left_out(
        [run.cfg for run in runs], [width_of_rows(run) for run in runs], facts, first.device
    ):
        print_line(f"  {line}")


def mean_in_words(share: float) -> str:
    """Say that most of the activations' norm is their mean, and what to do about it."""
    return (
        f"caution: {share:.0%} of the activations' squared norm is their mean, beside which what differs "
        "between them is small; activations.scaling=centred subtracts it: lower FVU, fewer dead latents"
    )


def memory_in_words(runs: list[Run]) -> str:
    """Say what a consumer will hold: its dictionaries, and the rows of each of their hooks once."""
    held = [consumer_memory(run.cfg, sum(run.widths), run.widths[-1]) for run in runs]
    places = [(run.cfg.hook, run.cfg.target_hook) for run in runs]
    waiting = {place: each.rows for place, each in zip(places, held, strict=True)}
    parts = (sum(each.dictionary for each in held), sum(waiting.values()))
    dictionary, rows = (gib(count, 2) for count in parts)
    said = (
        f"each consumer holds {dictionary} of dictionary and optimizer, {rows} of activations in the "
        "shuffle buffer"
    )
    if runs[0].cfg.checkpoint.background:
        copies = sum(checkpoint_bytes(run.cfg, width_of_rows(run)) for run in runs)
        staging = STAGING_BYTES if runs[0].device.type == "cuda" else 0
        copy = gib(copies / runs[0].topology.num_consumers + staging, 2)
        said += f", {copy} more on the host while a checkpoint is written"
    return said


def offload_in_words(runs: list[Run]) -> str:
    """Say what each step moves over the bus: weights and gradients to the host, weights back."""
    owned = sum(p.numel() * p.element_size() for run in runs for p in run.dictionary.parameters())
    return (
        f"optim=offload: each step moves {gib(3 * owned, 2)} between this GPU and the host, and updates "
        f"{gib(owned, 2)} of weights there; optim=row_adam needs neither, where its moments fit"
    )


def width_of_rows(run: Run) -> int:
    """Return the width of a latent's rows as `config.rules.checkpoint` counts it, D + E of a transcoder."""
    return sum(run.widths) if run.cfg.target_hook else run.widths[-1]
