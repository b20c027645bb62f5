"""The contestants of `sae-dist bench step`, the shapes, and for how long. Imports nothing heavy."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from sae_dist.bench.contestant import Contestant

DEAD_SHARE = 0.1
"""Of the latents, where AuxK acts."""
MODES = {"rest": "no latent is dead, AuxK at rest", "aux": f"AuxK on {DEAD_SHARE:.0%} dead latents"}
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Shape:
    """A size of step: D of the activations, latents F, codes k of a row, rows B of a step."""

    width: int
    latents: int
    k: int
    batch: int

    def __str__(self) -> str:
        return f"D = {self.width}, {self.latents} latents, k = {self.k}, batch {self.batch}"

    @property
    def most_k(self) -> int:
        """The most codes of a row: they can only come from latents that are alive."""
        return self.latents - int(DEAD_SHARE * self.latents)


@dataclass(frozen=True, kw_only=True)
class StepContestant(Contestant):
    """A trainer whose step is timed, or a floor that steps are measured against.

    Attributes:
        floor: it is a floor, and trains nothing.
        compiled: its first step in each mode compiles it.
        copies, scores: guesses of its memory while it steps, for its first step: how often it holds both
            weights, and how many tensors [B, F].
    """

    floor: bool = False
    compiled: bool = False
    copies: float = 5.0
    scores: float = 5.0

    def guess(self, shape: Shape) -> int:
        """Return about how many bytes it holds while it steps."""
        weights = 2 * shape.latents * shape.width * FLOAT_BYTES
        return int(self.copies * weights + self.scores * shape.batch * shape.latents * FLOAT_BYTES)


PLAIN, OURS = "sae_dist.bench.step.plain", "sae_dist.bench.step.ours"
PRODUCTS = ("product_float32", "product_tf32", "product_bfloat16")
CONTESTANTS = {
    each.name: each
    for each in (
        *(
            StepContestant(name, name.replace("_", " "), None, PLAIN, name, floor=True, copies=2, scores=1)
            for name in PRODUCTS
        ),
        StepContestant("copy", "copy of W_enc", None, PLAIN, "copy", floor=True, copies=2, scores=0),
        StepContestant("ours", "sae_dist", None, OURS, "optim=adam", scores=0.5),
        StepContestant("ours_row_adam", "sae_dist, row_adam", None, OURS, "optim=row_adam", scores=0.5),
        StepContestant("saelens", "SAELens", "saelens", "step_saelens.py"),
        StepContestant("sparsify", "sparsify (signum)", "sparsify", "step_sparsify.py", "signum"),
        StepContestant("sparsify_adam", "sparsify (adam)", "sparsify", "step_sparsify.py", "adam"),
        StepContestant(
            "dictionary_learning", "dictionary_learning", "dictionary_learning", "step_dictionary_learning.py"
        ),
        StepContestant("dense", "dense, torch.compile", None, PLAIN, "dense", compiled=True),
    )
}
STEPPERS = tuple(name for name, each in CONTESTANTS.items() if not each.floor)


@dataclass(frozen=True)
class StepPreset:
    """The shapes, most rounds, and minutes until the table has to be written; None: no limit."""

    shapes: tuple[Shape, ...]
    rounds: int
    minutes: float | None


PRESETS = {
    "laptop": StepPreset((Shape(384, 24576, 32, 2048),), 5, 5.5),
    "h200": StepPreset(
        (
            Shape(768, 32768, 32, 32768),
            Shape(2304, 131072, 64, 8192),
            Shape(4096, 131072, 32, 8192),
            Shape(4096, 2**19, 64, 8192),
            Shape(2304, 2**20, 32, 8192),
        ),
        5,
        7.5,
    ),
    "full": StepPreset(
        tuple(
            Shape(width, latents, k, batch)
            for (width, latents), k, batch in product(
                ((768, 32768), (2304, 131072), (2304, 2**20), (4096, 131072), (4096, 2**19)),
                (32, 64),
                (8192, 32768),
            )
        ),
        5,
        None,
    ),
}


@dataclass(frozen=True)
class StepPlan:
    """The settings of one step benchmark.

    Attributes:
        only: contestants besides the floors, in the order of the tables.
        rounds: at most so many; fewer where `minutes` end before.
        peer_python: interpreter of a peer, by its name.
    """

    folder: Path
    shapes: tuple[Shape, ...]
    rounds: int
    minutes: float | None
    only: tuple[str, ...] = STEPPERS
    peer_python: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"

    @property
    def names(self) -> tuple[str, ...]:
        """The floors, then the contestants. Tensor cores round float32 to TF32 on a GPU only."""
        products = [name for name in PRODUCTS if self.device == "cuda" or name != "product_tf32"]
        return (*products, "copy", *self.only)


def order(names: list[str], turn: int) -> list[str]:
    """Return the order of contestants in a round.

    Each is first equally often. Every other round is the one before it backwards, so that none always
    follows the same one.
    """
    first = turn // 2 % len(names) if names else 0
    turned = names[first:] + names[:first]
    return turned[::-1] if turn % 2 else turned


def to_drop(held: dict[str, int], need: int, room: int) -> list[str]:
    """Choose the contestants that give memory back before one that needs `need` bytes steps.

    Args:
        held: bytes that each of the others holds while it waits.
        room: bytes of the device.

    Returns:
        The largest first, until what the others hold and the need fit; all, where that is not enough.
    """
    dropped, kept = [], sum(held.values())
    for name in sorted(held, key=lambda each: held[each], reverse=True):
        if kept + need <= room:
            break
        dropped.append(name)
        kept -= held[name]
    return dropped


def steps_of(seconds: float, target_s: float = 0.25, most: int = 50) -> int:
    """Return how many steps are timed at once, from the time of one."""
    return max(1, min(most, int(target_s / max(seconds, 1e-9))))
