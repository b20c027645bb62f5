"""The words of `sae-dist bench`. Imports nothing heavy: help and wrong words are answered at once."""

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from sae_dist.bench.arguments import DEVICES, FOLDER, Parser, count, counts, device, pairs, positive
from sae_dist.bench.quality.contestants import CONTESTANTS, check_peer_python
from sae_dist.bench.quality.plan import Plan
from sae_dist.bench.step.arguments import step
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

quality trains SAELens, sparsify and dictionary_learning by their own trainers, and sae_dist, on the same
activations: a sweep of the learning rate for each, then several seeds at the best. It may be stopped at any
time; the same command goes on, and so do defaults and law. --help after any of them says more.
"""


@dataclass(frozen=True)
class Preset:
    """Defaults of a size. `shapes` is every latents x every k."""

    tokens: int
    latents: tuple[int, ...]
    k: tuple[int, ...]
    seeds: int
    test_rows: int


PRESETS = {
    "default": Preset(1_000_000, (4096,), (32,), 3, 120_000),
    "small": Preset(200_000, (2048,), (32,), 2, 100_000),
    # One pass over the text that Python carries gives a little less than 8M activations.
    "full": Preset(7_000_000, (4096, 16384), (16, 64), 3, 500_000),
}


def bench(words: list[str]) -> None:
    """`sae-dist bench ...`.

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


def quality(words: list[str]) -> None:
    """`sae-dist bench quality`."""
    plan = read_plan(words)
    from sae_dist.bench.quality.run import run_quality

    run_quality(plan)


def read_plan(words: list[str]) -> Plan:
    """The settings that the words mean.

    Raises:
        ConfigError: they mean none.
    """
    given = quality_parser().parse_args(words)
    preset = PRESETS["small" if given.small else "full" if given.full else "default"]
    tokens = count(given.tokens, "--tokens") if given.tokens else preset.tokens
    latents = counts(given.latents, "--latents") if given.latents else preset.latents
    ks = counts(given.k, "--k") if given.k else preset.k
    seeds = count(given.seeds, "--seeds") if given.seeds is not None else preset.seeds
    if tokens < 20 * Plan.batch:
        raise ConfigError(f"--tokens {tokens} is too few to compare anything; use at least {20 * Plan.batch}")
    if max(ks) > min(latents):
        raise ConfigError(f"--k {max(ks)} is more than --latents {min(latents)}; use a smaller k")
    only = tuple(given.only.split(",")) if given.only else Plan.only
    for name in only:
        if name not in CONTESTANTS:
            raise ConfigError(f"--only {name}: the contestants are {', '.join(CONTESTANTS)}")
    peer_python = pairs(given.peer_python or "")
    check_peer_python(peer_python)
    return Plan(
        folder=given.folder,
        tokens=tokens,
        shapes=tuple((F, k) for F in latents for k in ks),
        seeds=seeds,
        test_rows=preset.test_rows,
        only=only,
        peer_python=peer_python,
        refine=given.refine,
        device=device(given.device),
    )


def quality_parser() -> Parser:
    """Options of `sae-dist bench quality`."""
    parser = Parser(
        prog="sae-dist bench quality",
        description="Held-out FVU, dead latents and time of sae_dist and of its peers, each by its own "
        "trainer, on activations of all-MiniLM-L6-v2 (layer 2). Resumable: run it again.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"everything it writes ({FOLDER})")
    parser.add_argument("--only", help=f"some of {','.join(CONTESTANTS)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help=sized("small"))
    size.add_argument("--full", action="store_true", help=f"for a GPU: {sized('full')}")
    parser.add_argument("--tokens", help=f"training activations (default: {sized('default')})")
    parser.add_argument("--latents", help="one or several: 4096,16384")
    parser.add_argument("--k", help="one or several: 16,64")
    parser.add_argument("--seeds", help="at the best learning rate")
    parser.add_argument(
        "--refine", action="store_true", help="after the grid of learning rates, half a step to either side"
    )
    parser.add_argument(
        "--peer-python",
        help="saelens=/path/bin/python,... instead of the environments of sae-dist bench peers",
    )
    parser.add_argument("--device", default="auto", choices=DEVICES)
    return parser


def sized(name: str) -> str:
    """A preset in words."""
    preset = PRESETS[name]
    latents, ks = (", ".join(map(str, numbers)) for numbers in (preset.latents, preset.k))
    return f"{preset.tokens:,} tokens, {latents} latents, k {ks}, {preset.seeds} seeds"


def peers(words: list[str]) -> None:
    """`sae-dist bench peers`."""
    from sae_dist.bench.venvs import PACKAGES, TORCH, TRAINERS, make_environments

    parser = Parser(
        prog="sae-dist bench peers",
        description="Make an environment for each peer in FOLDER/peers, by venv and pip, torch first. pip's "
        "own settings choose the build of torch; on a machine without a GPU the CPU build saves gigabytes.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"of the benchmark ({FOLDER})")
    parser.add_argument("--only", help=f"some of {','.join(PACKAGES)} ({','.join(TRAINERS)})")
    parser.add_argument("--torch", default=TORCH, help=f"what pip installs first ({TORCH})")
    given = parser.parse_args(words)
    only = given.only.split(",") if given.only else TRAINERS
    for peer in only:
        if peer not in PACKAGES:
            raise ConfigError(f"--only {peer}: the peers are {', '.join(PACKAGES)}")
    print("\n".join(make_environments(given.folder, only, given.torch)))


def defaults(words: list[str]) -> None:
    """`sae-dist bench defaults`."""
    from sae_dist.bench.quality.studies import STUDIES, run_defaults

    parser = Parser(
        prog="sae-dist bench defaults",
        description="Held-out FVU and dead latents of sae_dist with one setting changed at a time, each with "
        "a learning rate of its own or all with --lr, on the data of sae-dist bench quality. Resumable: run "
        "it again.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"of the benchmark ({FOLDER})")
    parser.add_argument("--study", default=",".join(STUDIES), help=f"some of {','.join(STUDIES)} (all)")
    parser.add_argument("--only", help="some of a study's variants (all)")
    parser.add_argument("--lr", help="one learning rate for all; otherwise a sweep for each")
    parser.add_argument("--tokens", default="1M", help="training activations (1M)")
    parser.add_argument("--latents", default="4096", help="one or several (4096)")
    parser.add_argument("--k", default="32")
    parser.add_argument("--seeds", default="3", help="at the best learning rate (3)")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    given = parser.parse_args(words)
    studies = given.study.split(",")
    for study in studies:
        if study not in STUDIES:
            raise ConfigError(f"--study {study}: the studies are {', '.join(STUDIES)}")
    only = given.only.split(",") if given.only else None
    known = [name for study in studies for name in STUDIES[study]]
    for name in only or ():
        if name not in known:
            raise ConfigError(f"--only {name}: the variants are {', '.join(known)}")
    plan = own_plan(given, count(given.tokens, "--tokens"), counts(given.latents, "--latents"))
    if given.lr:
        plan = dataclasses.replace(plan, lr=positive(given.lr, "--lr"))
    for study in studies:
        if only is None or set(only) & set(STUDIES[study]):
            run_defaults(plan, study, only)


def law(words: list[str]) -> None:
    """`sae-dist bench law`."""
    parser = Parser(
        prog="sae-dist bench law",
        description="Sweep our learning rate at several lengths of run, batches and numbers of latents, "
        "varied one at a time around the first of each, and fit the law that optim.lr=null follows. "
        "Resumable: run it again.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"gets law.json ({FOLDER})")
    parser.add_argument("--tokens", default="1M,250k,4M", help="activations of a run (1M,250k,4M)")
    parser.add_argument("--batch", default="2048,512,8192", help="activations of a step (2048,512,8192)")
    parser.add_argument("--latents", default="4096,16384", help="of the dictionaries (4096,16384)")
    parser.add_argument("--k", default="32")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    given = parser.parse_args(words)
    tokens, batches = counts(given.tokens, "--tokens"), counts(given.batch, "--batch")
    latents = counts(given.latents, "--latents")
    plan = own_plan(given, max(tokens), latents)
    from sae_dist.bench.quality.studies import law_in_words, run_law

    print(law_in_words(run_law(plan, tokens, batches, latents)))


def own_plan(given: argparse.Namespace, tokens: int, latents: tuple[int, ...]) -> Plan:
    """What the words of a study of our own mean.

    Raises:
        ConfigError: they mean nothing.
    """
    k = count(given.k, "--k")
    if k > min(latents):
        raise ConfigError(f"--k {k} is more than --latents {min(latents)}; use a smaller k")
    if tokens < 20 * Plan.batch:
        raise ConfigError(f"--tokens {tokens} is too few to compare anything; use at least {20 * Plan.batch}")
    return Plan(
        folder=given.folder,
        tokens=tokens,
        shapes=tuple((F, k) for F in latents),
        seeds=count(getattr(given, "seeds", "1"), "--seeds"),
        only=("ours",),
        device=device(given.device),
    )


def scaling(words: list[str]) -> None:
    """`sae-dist bench scaling`."""
    parser = Parser(
        prog="sae-dist bench scaling",
        description="Time per token of our training step at several numbers of latents, beside the bare "
        "product of the encoder of the same shape, in turn, in one process.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"gets scaling.csv ({FOLDER})")
    parser.add_argument("--latents", default="4096,16384,65536,262144", help="one or several (%(default)s)")
    for name, value in {"width": "384", "k": "32", "batch": "2048"}.items():
        parser.add_argument(f"--{name}", default=value)
    parser.add_argument("--device", default="auto", choices=DEVICES)
    given = parser.parse_args(words)
    latents = counts(given.latents, "--latents")
    sizes = {name: count(getattr(given, name), f"--{name}") for name in ("width", "k", "batch")}
    if sizes["k"] > min(latents):
        raise ConfigError(f"--k {sizes['k']} is more than --latents {min(latents)}; use a smaller k")
    where = device(given.device)
    from sae_dist.bench.scaling import run_scaling

    print(run_scaling(given.folder, latents, device=where, **sizes))


def kernels(words: list[str]) -> None:
    """`sae-dist bench kernels`."""
    parser = Parser(
        prog="sae-dist bench kernels",
        description="Time of every kernel beside the least that its bytes and operations could take at rates "
        "measured first. For a GPU: --latents 1048576 --width 2304 --k 64 --batch 8192.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"gets kernels.csv ({FOLDER})")
    for name, value in {"latents": "16384", "width": "384", "k": "32", "batch": "2048"}.items():
        parser.add_argument(f"--{name}", default=value)
    parser.add_argument("--kernels", default="auto", choices=("auto", "triton", "torch", "reference"))
    parser.add_argument("--device", default="auto", choices=DEVICES)
    given = parser.parse_args(words)
    sizes = [count(getattr(given, name), f"--{name}") for name in ("batch", "width", "latents", "k")]
    if sizes[3] > sizes[2]:
        raise ConfigError(f"--k {sizes[3]} is more than --latents {sizes[2]}; use a smaller k")
    where = device(given.device)
    from sae_dist.bench.kernels import Size, run_kernels

    print(run_kernels(given.folder, Size(*sizes), backend=given.kernels, device=where))
