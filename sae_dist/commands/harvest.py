"""The command `sae-dist harvest`: activations on disk, to train many dictionaries from."""

from sae_dist.commands.arguments import without_cfg
from sae_dist.core.text import show


def help_text() -> str:
    """Return the help text."""
    return """\
Runs the frozen LLM over the text and stores its activations as tar files with a manifest. sae-dist train
activations=cache activations.path=FOLDER reads them, in the same order and number as a run that computes them
itself. Accepts the keys of sae-dist train (train --help); those of the dictionary are not read.

  name=...                  the folder below output=outputs; default: made from the values that matter
  train_tokens=2M           activations to store; runs up to this length can train from them
  cache.dtype=bfloat16      float32 or float64 keep all digits: training is then bit for bit the same
  cache.shard_chunks=32     consecutive chunks of a lane in one tar file
  topology.producers=4      4 processes, each with its own lanes; the files are the same
  resume=auto               continue an unfinished harvest; write again what a finished one has lost
  --cfg job                 print the composed configuration and exit

Examples:
  sae-dist harvest train_tokens=2M name=cache
  sae-dist train activations=cache activations.path=outputs/cache sae.num_latents=16384
"""


def run(arguments: list[str]) -> None:
    """Harvest activations; with --cfg job print the config.

    Raises:
        SaeDistError: see `launch.harvest.harvest_command`.
    """
    from sae_dist.launch.options import tell_defaults

    tell_defaults()
    overrides, print_it = without_cfg(arguments)
    if print_it:
        from sae_dist.launch.compose import print_config

        show(print_config(overrides), end="")
        return
    from sae_dist.launch.harvest import harvest_command

    harvest_command(overrides)
