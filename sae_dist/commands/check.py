"""The command `sae-dist check`: the stream between two processes of this machine or cluster."""


def help_text() -> str:
    """Return the help text."""
    return """\
Sends a few hundred chunks of activations from one process to another, compares order and contents with what
was sent, and times them against bare sends of the same bytes. It starts both processes; inside torchrun or a
Slurm step of two tasks it joins, so that two machines can be checked.

  --device cpu       gloo; cuda: NCCL, a GPU for each process
  --chunks 400       how many are sent, at least 16
  --rows 1024        activations of a chunk; --width 1024: numbers of an activation
  --dtype bfloat16   or float32
  --timeout-s 60     seconds that a process may be silent

Examples:
  sae-dist check
  sae-dist check --device cuda --width 4096
  srun --nodes 2 --ntasks 2 --gpus-per-task 1 sae-dist check --device cuda
"""


def run(arguments: list[str]) -> None:
    """Check the stream, and print one line.

    Raises:
        SaeDistError: see `launch.check.check_command`.
    """
    from sae_dist.launch.check import check_command

    check_command(arguments)
