"""The environments of `sae-dist bench peers`: one for each peer, in the benchmark's folder."""

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from sae_dist.bench.contestant import last_line, peer_environment
from sae_dist.bench.environments import is_mine, keep
from sae_dist.bench.quality.plan import make_bench_folder
from sae_dist.core.errors import ConfigError, SaeDistError

PACKAGES = {
    "saelens": ["sae-lens==6.54.12"],
    "sparsify": ["eai-sparsify==1.3.3"],
    "dictionary_learning": ["dictionary-learning==0.1.0"],
    "saebench": ["sae-lens==6.54.12", "sae-bench==0.6.0"],
}
TORCH = "torch==2.13.0"


def make_environments(folder: Path, only: Sequence[str], torch: str) -> list[str]:
    """Make the environments that do not exist yet, or that somebody else made.

    torch is installed first and named again beside the peer, so that no requirement of the peer replaces it.

    Args:
        torch: the requirement for pip, whose own settings (pip.conf, PIP_INDEX_URL) choose CPU or CUDA.

    Returns:
        One line for each.

    Raises:
        SaeDistError: pip failed; names the log.
    """
    make_bench_folder(folder)
    lines = []
    for peer in only:
        python = peer_environment(folder, peer)
        if not is_mine(python.parents[1]):
            _check_place(python.parents[1], folder)
            packages = PACKAGES[peer]
            print(f"{peer}: {', '.join([torch, *packages])}", file=sys.stderr, flush=True)
            venv.create(python.parents[1], with_pip=True, clear=True)
            log = python.parents[1] / "pip.log"
            for step in (
                ["install", torch],
                ["install", torch, *packages],
                # Drawn in by nnsight and SAEBench, and used by none of what runs here; beside a CPU build of
                # torch its wheel breaks the import of transformers.
                ["uninstall", "--yes", "torchvision"],
            ):
                with open(log, "a", encoding="utf-8") as out:
                    words = [str(python), "-m", "pip", "--disable-pip-version-check", *step]
                    done = subprocess.run(words, stdout=out, stderr=out)
                if done.returncode:
                    raise SaeDistError(f"{peer}: pip {' '.join(step)} failed: {last_line(log)} (see {log})")
            keep(python.parents[1], packages)
        lines.append(f"{peer}: {python}")
    return lines


def _check_place(environment: Path, folder: Path) -> None:
    """Check that an environment's folder is where it seems to be: what is in it is removed first.

    Raises:
        ConfigError: it is a link, or behind one.
    """
    if environment.resolve() != folder.resolve() / environment.parent.name / environment.name:
        raise ConfigError(f"{environment} is a link to {environment.resolve()}; remove it")
