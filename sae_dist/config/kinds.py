"""Names of the kinds of dictionaries, known before torch is."""

from pathlib import Path

KINDS = tuple(sorted(p.stem for p in (Path(__file__).parents[1] / "dictionary" / "kinds").glob("[a-z]*.py")))
"""Every module of dictionary/kinds is a kind."""
SELECTED = ("topk", "batchtopk", "matryoshka")
"""Kinds with selected codes; the others have a code for every latent, and a penalty."""
ENCODER_SCALE = 0.8
"""At the start, of kinds with selected codes."""
PENALISED = tuple(kind for kind in KINDS if kind not in SELECTED)
READ_BY = {
    "threshold_beta": ("batchtopk", "matryoshka"),
    "prefixes": ("matryoshka",),
    "sparsity": PENALISED,
    "sparsity_warmup": PENALISED,
    "l1_weighting": ("relu",),
    "penalty": ("jumprelu",),
    "target_l0": ("jumprelu",),
    "bandwidth": ("jumprelu",),
    "threshold": ("jumprelu",),
    "preact": ("jumprelu",),
}
"""Fields of `sae` that only some kinds read; those kinds need them all but target_l0."""
