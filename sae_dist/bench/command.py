"""The command `sae-dist bench`. Imports nothing heavy: help and wrong arguments are answered at once."""

from sae_dist.bench.arguments import Parser, check_k, count, counts, device, some_of
from sae_dist.bench.beside.arguments import beside
from sae_dist.bench.quality.arguments import defaults, law, quality
from sae_dist.bench.step.arguments import step
from sae_dist.bench.step.plan import Shape
from sae_dist.bench.stream.arguments import mixing, stream
from sae_dist.core.errors import ConfigError

USAGE = """sae-dist bench quality [--folder F] [--small | --full] ...   FVU beside other trainers
sae-dist bench peers [--folder F]                           environments for those trainers
sae-dist bench defaults [--folder F] [--study S] ...        our own settings, one changed at a time
sae-dist bench law [--folder F] ...                         the best learning rate by length, batch, latents
sae-dist bench step [--preset P] [--folder F] ...           time of a training step beside other trainers
sae-dist bench scaling [--folder F] ...                     time per token at 4k to 256k latents
sae-dist bench kernels [--folder F] ...                     each kernel beside its floor
sae-dist bench stream [--folder F] ...                      the way from the LLM to the dictionary
sae-dist bench mixing [--folder F] ...                      how well blocks of several sizes are mixed
sae-dist bench beside RUN [--folder F] ...                  a dictionary's cost beside its language model

quality trains SAELens, sparsify and dictionary_learning by their own trainers, and sae_dist, on the same
activations: a sweep of the learning rate for each, then several seeds at the best. It may be stopped at any
time; the same command goes on, and so do defaults and law. --help after any of them says more.
"""


def bench(words: list[str]) -> None:
    """Run `sae-dist bench ...`.

    Raises:
        SaeDistError: see `core.errors`.
    """
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    known = {
        "quality": quality,
        "peers": peers,
        "defaults": defaults,
        "law": law,
        "step": step,
        "scaling": scaling,
        "kernels": kernels,
        "stream": stream,
        "mixing": mixing,
        "beside": beside,
    }
    if command in ("--help", "-h"):
        print(USAGE, end="")
    elif command in known:
        try:
            known[command](rest)
        except SystemExit:
            return  # argparse printed the help
    else:
        raise ConfigError(f"there is no sae-dist bench {command}; use {', '.join(known)}")


def peers(words: list[str]) -> None:
    """Run `sae-dist bench peers`."""
    from sae_dist.bench.contestant import TRAINERS
    from sae_dist.bench.venvs import PACKAGES, TORCH, make_environments

    parser = Parser(
        prog="sae-dist bench peers",
        description="Make an environment for each peer in FOLDER/peers, by venv and pip, torch first. pip's "
        "own settings choose the build of torch; on a machine without a GPU the CPU build saves gigabytes.",
    )
    parser.add_argument("--folder")
    parser.add_argument("--only", default=",".join(TRAINERS), help=f"some of {','.join(PACKAGES)}")
    parser.add_argument("--torch", default=TORCH, help="what pip installs first")
    given = parser.parse_args(words)
    only = some_of(given.only, "--only", tuple(PACKAGES), "peers")
    print("\n".join(make_environments(given.folder, only, given.torch)))


def scaling(words: list[str]) -> None:
    """Run `sae-dist bench scaling`."""
    parser = Parser(
        prog="sae-dist bench scaling",
        description="Time per token of our training step at several numbers of latents, beside the bare "
        "product of the encoder of the same shape, in turn, in one process.",
    )
    parser.add_argument("--folder", help="gets scaling.csv")
    parser.add_argument("--latents", default="4096,16384,65536,262144")
    for name in ("--width", "--k", "--batch", "--device"):
        parser.add_argument(name)
    given = parser.parse_args(words)
    latents = counts(given.latents, "--latents")
    sizes = {name: count(getattr(given, name), f"--{name}") for name in ("width", "k", "batch")}
    check_k(sizes["k"], min(latents))
    where = device(given.device)
    from sae_dist.bench.scaling import run_scaling

    print(run_scaling(given.folder, latents, device=where, **sizes))


def kernels(words: list[str]) -> None:
    """Run `sae-dist bench kernels`."""
    parser = Parser(
        prog="sae-dist bench kernels",
        description="Time of every kernel beside the least that its bytes and operations could take at rates "
        "measured first. For a GPU: --latents 1048576 --width 2304 --k 64 --batch 8192.",
    )
    parser.add_argument("--folder", help="gets kernels.csv")
    parser.add_argument("--latents", default="16384", help="size of the dictionary")
    for name in ("--width", "--k", "--batch", "--kernels", "--device"):
        parser.add_argument(name)
    given = parser.parse_args(words)
    names = ("width", "latents", "k", "batch")
    shape = Shape(**{name: count(getattr(given, name), f"--{name}") for name in names})
    check_k(shape.k, shape.latents)
    where = device(given.device)
    from sae_dist.bench.kernels import run_kernels

    print(run_kernels(given.folder, shape, backend=given.kernels, device=where))
