"""The steps of `sae-dist check`: two ranks, started here or by a launcher, and the stream between them."""

import argparse
import json
import tempfile
from pathlib import Path

from sae_dist.core.errors import ConfigError
from sae_dist.core.place import launched
from sae_dist.launch.arguments import Parser

OPTIONS, RANKS = "options.json", 2


def check_command(arguments: list[str]) -> None:
    """Check the stream between two ranks.

    Raises:
        SaeDistError: the options are wrong, there are not two ranks or GPUs, or the stream is broken.
    """
    from sae_dist.transport.check import check, options_of

    options = options_of(Parser("sae-dist check", add_help=False, allow_abbrev=False), arguments)
    if launched():
        check(options)
        return
    if options.device == "cuda":
        import torch

        if (found := torch.cuda.device_count()) < RANKS:
            raise ConfigError(
                f"--device cuda: the check needs {RANKS} GPUs and finds {found}; use --device cpu, or start "
                "a process on each of two machines: srun --ntasks 2 sae-dist check --device cuda"
            )
    from sae_dist.launch.spawn import spawn

    with tempfile.TemporaryDirectory(prefix="sae_dist_check_") as folder:
        (Path(folder) / OPTIONS).write_text(json.dumps(vars(options)), encoding="utf-8")
        spawn(Path(folder), RANKS, "check")


def check_rank(folder: Path) -> None:
    """Run one rank of the check, whose options are in a folder.

    Raises:
        SaeDistError: see `transport.check.check`.
    """
    from sae_dist.transport.check import check

    check(argparse.Namespace(**json.loads((folder / OPTIONS).read_text(encoding="utf-8"))))
