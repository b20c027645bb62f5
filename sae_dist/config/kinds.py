"""The facts about each kind of dictionary that are known before torch is loaded: one row per kind.

The row's key is the value of `sae.kind`, the name of the kind's file in dictionary/kinds and the name of its
values in conf/sae.
"""

from dataclasses import dataclass, fields

from sae_dist.config.sections import SaeConfig


@dataclass(frozen=True)
class Kind:
    """A row of the table of kinds.

    Attributes:
        class_name: the class in the kind's file.
        selected: codes are selected, few per row; otherwise every latent has a code, and there is a penalty.
        reads: fields of `sae` that not every kind reads. This one needs them all.
        may_read: such fields that may stay null.
        vectors: numbers of a latent besides its encoder row and decoder row: biases, thresholds.
        dense_start: about half of all latents fire before training, as nothing selects or thresholds codes.
    """

    class_name: str
    selected: bool = False
    reads: tuple[str, ...] = ()
    may_read: tuple[str, ...] = ()
    vectors: int = 1
    dense_start: bool = False


PENALTY = ("sparsity", "sparsity_warmup")
KINDS = {
    "batchtopk": Kind("BatchTopK", selected=True, reads=("threshold_beta",)),
    "gated": Kind("Gated", reads=PENALTY, vectors=3, dense_start=True),
    "jumprelu": Kind(
        "JumpRelu",
        reads=(*PENALTY, "penalty", "bandwidth", "threshold", "preact"),
        may_read=("target_l0",),
        vectors=2,
    ),
    "matryoshka": Kind("Matryoshka", selected=True, reads=("threshold_beta", "prefixes")),
    "relu": Kind("Relu", reads=(*PENALTY, "l1_weighting"), dense_start=True),
    "topk": Kind("TopK", selected=True),
}
SELECTED = tuple(name for name, kind in KINDS.items() if kind.selected)
PENALISED = tuple(name for name, kind in KINDS.items() if not kind.selected)
READ_BY = {
    field.name: readers
    for field in fields(SaeConfig)
    if (readers := tuple(name for name, kind in KINDS.items() if field.name in kind.reads + kind.may_read))
}
"""Fields of `sae` that only some kinds read, in the order of the section, and those kinds."""
ENCODER_SCALE = 0.8
"""Length of the encoder's rows before training, for kinds that do not start dense."""
