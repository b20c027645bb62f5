"""The layouts in which a dictionary can be written and read; a run's own export has that of SAELens."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.export import (
    circuit_tracer,
    dictionary_learning,
    gemma_scope,
    published,
    qwen_scope,
    saelens,
    sparsify,
)
from sae_dist.export.exported import ExportedSae, Latents
from sae_dist.export.names import FILES


@dataclass(frozen=True)
class Format:
    """A layout of files for a finished dictionary.

    Attributes:
        folder: its folder within a run's `export`.
        files: the names of its files, config first; * stands for what differs.
        cannot_hold: returns why a dictionary cannot be written in it ("..., only ..."); None: it can.
        write: writes a dictionary into a folder; None: it is only read.
        read: reads a dictionary from a folder, or a file in it.
    """

    folder: str
    files: tuple[str, str]
    cannot_hold: Callable[[ExportedSae], str | None]
    write: Callable[[Path, Latents], None] | None
    read: Callable[[Path], ExportedSae]


def _holds_all(head: ExportedSae) -> None:
    return None


def _holds_none(head: ExportedSae) -> str:
    return "what this program trained: it is only read"


FORMATS = {
    "saelens": Format(
        folder=".",
        files=FILES["saelens"],
        cannot_hold=_holds_all,
        write=saelens.export_saelens,
        read=published.load_published,
    ),
    "sparsify": Format(
        folder="sparsify",
        files=FILES["sparsify"],
        cannot_hold=sparsify.cannot_hold,
        write=sparsify.export_sparsify,
        read=sparsify.load_sparsify,
    ),
    "dictionary_learning": Format(
        folder="dictionary_learning",
        files=FILES["dictionary_learning"],
        cannot_hold=dictionary_learning.cannot_hold,
        write=dictionary_learning.export_dictionary_learning,
        read=dictionary_learning.load_dictionary_learning,
    ),
    "circuit_tracer": Format(
        folder="circuit_tracer",
        files=FILES["circuit_tracer"],
        cannot_hold=circuit_tracer.cannot_hold,
        write=circuit_tracer.export_circuit_tracer,
        read=circuit_tracer.load_circuit_tracer,
    ),
    "gemma_scope": Format(
        folder="gemma_scope",
        files=FILES["gemma_scope"],
        cannot_hold=_holds_none,
        write=None,
        read=gemma_scope.load_gemma_scope,
    ),
    "gemma_scope_2": Format(
        folder="gemma_scope_2",
        files=FILES["gemma_scope_2"],
        cannot_hold=_holds_none,
        write=None,
        read=gemma_scope.load_gemma_scope_2,
    ),
    "qwen_scope": Format(
        folder="qwen_scope",
        files=FILES["qwen_scope"],
        cannot_hold=_holds_none,
        write=None,
        read=qwen_scope.load_qwen_scope,
    ),
}
WRITTEN = tuple(name for name, each in FORMATS.items() if each.write is not None)


def write(name: str, folder: Path, latents: Latents) -> None:
    """Write a dictionary in a format that can hold it; see `check_format`.

    Raises:
        SaeDistError: the weights could not be written.
    """
    act = FORMATS[name].write
    assert act is not None, f"{name} is only read"
    act(folder, latents)


def check_format(name: str, head: ExportedSae) -> None:
    """Check that a format can hold this dictionary.

    Raises:
        ConfigError: it cannot; the message names the formats that can.
    """
    reason = FORMATS[name].cannot_hold(head)
    if reason is not None:
        able = [other for other, each in FORMATS.items() if each.cannot_hold(head) is None]
        raise ConfigError(f"--format {name} cannot hold {reason}; use --format {' or '.join(able)}")
