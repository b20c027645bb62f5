"""The command `sae-dist train`: one run, or one for each combination of values."""

from sae_dist.commands.arguments import without, without_cfg
from sae_dist.core.errors import ConfigError
from sae_dist.core.text import show

HELP = """\
Trains a dictionary, exports it and evaluates it on held-out data. Without arguments it uses a small language
model and text that are already on this machine.

  -m            one run for each combination of comma-separated values; hydra/launcher=slurm submits them as
                one Slurm array (sae-dist submit --help)
  --cfg job     print the composed configuration and exit
  --dry-run     check everything, print what each rank will hold and write, and exit
  --help KEY    explain a key and its default: --help sae.k, --help sae (a section), --help all

Groups (group=option):
{groups}

Main keys (key=value; all of them: --help all):
  name=...                      run folder below output=outputs; default: made from the values that matter
  train_tokens=2M               activations to train on; counts are written 500k, 2M, 1e9
  batch=2048                    activations per step, over all processes
  llm.name=gpt2                 any causal or encoder model of transformers, by name or path
  hook=layers.12                module path, its output by default; layers.12.mlp:in is an input;
                                blocks.12.hook_resid_post is translated; null: the middle layer
  tokens.path=FOLDER            your own text
  sae.num_latents=65536         or sae.expansion=32 times the width
  sae.k=32                      codes per activation
  sae.start=RUN                 start from the weights of a run or an import, not from random ones
  optim.lr=null                 null: computed from steps, latents and width
  grid.num_latents=[4096,8192]  train many dictionaries on one stream, with one pass of the LLM: every
                                combination of grid.num_latents, grid.k, grid.lr, grid.hook and grid.seed
  'grid.hook=[layers.*.mlp:in]' 'grid.target_hook=[layers.*.mlp]'
                                a transcoder for each pair of hook and target; * is every layer's number
  topology.shard=2              split the dictionary over 2 processes; topology.producers=1 adds a process
                                that runs the LLM; topology.dp=2 adds a second replica
  resume=auto                   continue an unfinished run
  eval.every=500k               held-out FVU, L0 and more during training; eval.ce=4k: CE and KL too
  precision=float32             float64 (to compare runs), bfloat16 (activations are sent in it)
  metrics.wandb=off             auto, online, offline, off

Examples:
  sae-dist train
  sae-dist train sae.num_latents=16384 train_tokens=10M topology.shard=2
  sae-dist train llm=minilm hook=encoder.layer.2 sae.num_latents=12288
  sae-dist train activations=file activations.path=acts.npy sae.expansion=16
  sae-dist train activations=cache activations.path=outputs/cache    # written by sae-dist harvest
  sae-dist train 'grid.num_latents=[4096,16384]' 'grid.k=[16,32]'
  sae-dist train -m sae.k=16,32 optim.lr=1e-3,3e-3
  sae-dist train experiment=toy_superposition
"""


def help_text() -> str:
    """Return the help text, with the groups and their options."""
    from sae_dist.commands.keys import groups_in_words

    return HELP.format(groups=groups_in_words())


def run(arguments: list[str]) -> None:
    """Train one run; with -m several; with --cfg job print the config, with --dry-run what it needs.

    Raises:
        SaeDistError: see `launch.run.train_command`.
    """
    arguments, print_it = without_cfg(arguments)
    from sae_dist.launch.options import tell_defaults

    tell_defaults()
    overrides, many = without(arguments, "-m", "--multirun")
    overrides, only_look = without(overrides, "--dry-run")
    if only_look and many:
        raise ConfigError("--dry-run looks at one run; leave -m out, and give one value of each key")
    if print_it:
        from sae_dist.launch.compose import print_config

        show(print_config(overrides), end="")
    elif only_look:
        from sae_dist.launch.run import forecast_command

        forecast_command(overrides)
    elif many:
        from sae_dist.launch.sweep import multirun_command

        multirun_command(overrides)
    else:
        from sae_dist.launch.run import train_command

        train_command(overrides)
