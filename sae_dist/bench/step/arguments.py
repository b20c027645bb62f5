"""The arguments of `sae-dist bench step`."""

import sys
from itertools import product
from pathlib import Path

from sae_dist.bench.arguments import OPTIONS, Parser, count, counts, device, read_pythons, some_of
from sae_dist.bench.contestant import TrialFailed, check_peer_python
from sae_dist.bench.step.plan import CONTESTANTS, DEAD_SHARE, PRESETS, STEPPERS, Shape, StepPlan
from sae_dist.core.errors import ConfigError

LAPTOP = PRESETS["laptop"].shapes[0]
SIZES = ("width", "latents", "k", "batch")


def step(words: list[str]) -> None:
    """Run `sae-dist bench step`."""
    plan = read_step_plan(words)
    from sae_dist.bench.step.run import run_step

    print(run_step(plan))


def read_step_plan(words: list[str]) -> StepPlan:
    """Return the benchmark that the arguments ask for.

    Raises:
        ConfigError: an argument is wrong.
    """
    given = step_parser().parse_args(words)
    own = {name: getattr(given, name) for name in SIZES if getattr(given, name) is not None}
    if own and given.preset:
        raise ConfigError(f"--preset {given.preset} has shapes of its own; leave out --{next(iter(own))}")
    preset = PRESETS[given.preset or "laptop"]
    shapes, minutes = preset.shapes, preset.minutes
    if own:
        sizes = [counts(own.get(name, str(getattr(LAPTOP, name))), f"--{name}") for name in SIZES]
        shapes, minutes = tuple(Shape(*each) for each in product(*sizes)), None
    for shape in shapes:
        if shape.k > shape.most_k:
            raise ConfigError(
                f"--k {shape.k} is more than the {shape.most_k} of --latents {shape.latents} that are alive "
                f"where {DEAD_SHARE:.0%} are dead; use a smaller k"
            )
    if given.minutes is not None:
        minutes = float(count(given.minutes, "--minutes"))
    peer_python = read_pythons(given.peer_python or "")
    check_peer_python(peer_python)
    only = ready_contestants(given.only, given.folder, peer_python)
    return StepPlan(
        folder=given.folder,
        shapes=shapes,
        rounds=count(given.rounds, "--rounds") if given.rounds else preset.rounds,
        minutes=minutes,
        only=only,
        peer_python=peer_python,
        device=device(given.device),
    )


def ready_contestants(only: str | None, folder: Path, peer_python: dict[str, str]) -> tuple[str, ...]:
    """Return the contestants that were asked for, or all that have an environment.

    Raises:
        ConfigError: an unknown one, or one without its environment.
    """
    ready, absent = [], []
    for name in some_of(only, "--only", STEPPERS, "contestants"):
        try:
            CONTESTANTS[name].command(folder, peer_python)
            ready.append(name)
        except TrialFailed as error:
            if only:
                raise ConfigError(f"--only {name}: {error}") from None
            absent.append(name)
    if absent:
        missing = f"no environments for {', '.join(absent)}, which are left out"
        print(f"{missing}; sae-dist bench peers --folder {folder} makes them", file=sys.stderr, flush=True)
    return tuple(ready)


def step_parser() -> Parser:
    """Return the parser of `sae-dist bench step`."""
    parser = Parser(
        prog="sae-dist bench step",
        description="Time of a training step of sae_dist, of its peers, each by its own trainer, and of a "
        "dense one under torch.compile, beside the encoder's bare product: the same weights and rows, taken "
        "in turn, with AuxK at rest and acting. Contestants whose reconstructions differ are not timed.",
    )
    parser.add_argument("--folder", help="gets step.csv, .md, .png")
    parser.add_argument("--preset", choices=list(PRESETS), help=presets_in_words())
    parser.add_argument(
        "--only", help=f"some of {','.join(STEPPERS)} (those that have an environment: sae-dist bench peers)"
    )
    meanings = {name: OPTIONS[f"--{name}"]["help"] for name in SIZES} | {"latents": "size of the dictionary"}
    for name, meaning in meanings.items():
        help_text = f"{meaning}, one or several ({getattr(LAPTOP, name)})"
        parser.add_argument(f"--{name}", default=None, help=help_text)
    parser.add_argument(
        "--rounds", help=f"at most so many, after one that is not counted ({preset_rounds()})"
    )
    parser.add_argument("--minutes", help="stop after the round in which these end (the preset's, or none)")
    parser.add_argument("--peer-python")
    parser.add_argument("--device")
    return parser


def presets_in_words() -> str:
    """List the presets with their shapes and times."""
    found = []
    for name, preset in PRESETS.items():
        limit = f", {preset.minutes:g} min" if preset.minutes else ""
        found.append(f"{name}: {len(preset.shapes)} shape{'s' * (len(preset.shapes) > 1)}{limit}")
    return "; ".join(found)


def preset_rounds() -> str:
    """List the numbers of rounds of all presets."""
    return ", ".join(sorted({str(preset.rounds) for preset in PRESETS.values()}))
