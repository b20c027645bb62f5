"""A W&B workspace with the panels that a person watches while a large dictionary trains."""

from typing import TYPE_CHECKING

from sae_dist.core.errors import ConfigError, SaeDistError
from sae_dist.core.text import class_and_line
from sae_dist.metrics.wandb_sink import has_key

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

NAME = "sae_dist"
X_AXIS = "tokens"
SECTIONS: tuple[tuple[str, tuple[tuple[str, tuple[str, ...], bool], ...]], ...] = (
    (
        "Quality",
        (
            ("FVU", ("loss/fvu",), True),
            ("FVU, held out", ("eval/fvu",), True),
            ("CE recovered, held out", ("eval/ce_recovered",), False),
            ("L0", ("sparsity/l0",), False),
            ("dead latents", ("latents/dead_fraction",), False),
            ("loss", ("loss/total",), True),
        ),
    ),
    (
        "Optimizer",
        (
            ("gradient norm", ("optim/grad_norm",), True),
            ("learning rate", ("optim/lr",), False),
            ("AuxK", ("loss/aux",), False),
            ("sparsity penalty", ("loss/sparsity",), False),
        ),
    ),
    (
        "Speed",
        (
            ("activations per second", ("perf/tokens_per_second",), False),
            ("share of the measured matrix product", ("perf/gemm_share",), False),
            (
                "where a step goes, ms",
                (
                    "perf/receive_ms",
                    "perf/encode_ms",
                    "perf/select_ms",
                    "perf/exchange_ms",
                    "perf/decode_ms",
                    "perf/backward_ms",
                    "perf/step_ms",
                    "perf/wait_ms",
                    "perf/record_ms",
                    "perf/other_ms",
                ),
                False,
            ),
            ("who waits for whom, s", ("perf/wait_for_chunks_s", "perf/wait_for_credit_s"), False),
            ("peak memory, GiB", ("perf/peak_memory_gib",), False),
        ),
    ),
    (
        "Machines",
        (
            ("power of all GPUs, W", ("gpu/power_w",), False),
            ("GPU utilisation", ("gpu/utilisation",), False),
            ("hottest GPU, C", ("gpu/temperature_c",), False),
            ("fullest GPU, GiB", ("gpu/memory_gib",), False),
            ("throttled GPUs, XID errors", ("gpu/throttled", "gpu/xids"), False),
            ("resident memory, GiB", ("host/rss_gib",), False),
            ("CPU", ("host/cpu",), False),
        ),
    ),
    (
        "Stream",
        (("rows left out, rows repeated", ("stream/excluded_rows", "stream/repeated_rows"), False),),
    ),
)
"""Sections, each of panels: title, metrics, whether the axis is logarithmic."""


def dashboard(target: str) -> str:
    """Save the workspace as a view of a W&B project.

    Args:
        target: PROJECT, or ENTITY/PROJECT.

    Returns:
        The URL of the view.

    Raises:
        ConfigError: wandb-workspaces is missing, there is no key, or W&B rejects it.
        SaeDistError: W&B cannot be reached.
    """
    entity, _, project = target.rpartition("/")
    if not project or "/" in entity:
        raise ConfigError(f"{target} is not a W&B project; give PROJECT or ENTITY/PROJECT")
    try:
        import wandb_workspaces  # noqa: F401
    except ImportError:
        raise ConfigError(
            "sae-dist dashboard needs wandb-workspaces: pip install 'sae-dist[dashboard]'"
        ) from None
    if not has_key():
        raise ConfigError("no W&B key was found; run wandb login, or set WANDB_API_KEY")
    import wandb
    from wandb.errors import AuthenticationError, UsageError

    try:
        entity = entity or wandb.Api().default_entity or ""
        return workspace(entity, project).save().url
    except (AuthenticationError, UsageError) as error:
        raise ConfigError(f"W&B rejected the key: {class_and_line(error)}; run wandb login") from None
    except Exception as error:
        raise SaeDistError(f"W&B did not create the dashboard: {class_and_line(error)}") from error


def workspace(entity: str, project: str) -> "Workspace":
    """Build the workspace, without contacting W&B's server."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=name,
            is_open=True,
            panels=[
                wr.LinePlot(title=title, x=X_AXIS, y=list(metrics), log_y=logarithmic or None)
                for title, metrics, logarithmic in panels
            ],
        )
        for name, panels in SECTIONS
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis=X_AXIS),
    )
