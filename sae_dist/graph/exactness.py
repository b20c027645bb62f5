"""Checks of a graph's numbers, made on every prompt: the replacement is linear, and its rows add up.

Letters: as core.types; N settings of the sources, P latents, T logits, t targets, which are both; C sources,
n targets of a block.
"""

import torch
from torch import Tensor

from sae_dist.core.errors import ConfigError
from sae_dist.graph.graph import Checks
from sae_dist.graph.replacement import Replacement, Values
from sae_dist.graph.store import Store

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""What rounding makes at most; a part of some models of float64 computes in float32."""
SETTINGS = 3
"""So many times all sources are multiplied by random factors."""


def settings(replacement: Replacement, number: int = SETTINGS) -> Tensor:
    """Return random factors of all sources, from 0 to 2, the same for the same number of sources."""
    draw = torch.Generator().manual_seed(0)
    factor_NC = 2 * torch.rand(number, replacement.num_sources, generator=draw, dtype=torch.float64)
    return factor_NC.to(replacement.clean.embedding_SD)


def check_linear(replacement: Replacement) -> float:
    """Check that the replacement model is linear, before any row is computed; return the worst error.

    f(a) + f(b) = f(a + b - 1) + f(1) for any factors a and b of the sources. Errors are relative to what a
    target is of, at most, in any of these.

    Raises:
        ConfigError: it is not; or it is another model where nothing is changed.
    """
    a_C, b_C = settings(replacement, 2)
    one_C = torch.ones_like(a_C)
    found = together(replacement.run(torch.stack([a_C, b_C, a_C + b_C - 1, one_C, torch.zeros_like(a_C)])))
    size_t = (found - found[4]).abs().amax(0) + found.abs().amax(0)
    size_t = size_t.maximum(size_t.median())
    linear = worst(found[0] + found[1] - found[2] - found[3], size_t)
    faithful = worst(found[3] - untouched(replacement), size_t)
    limit = TOLERANCE[found.dtype]
    if linear > limit or faithful > limit:
        unknown = replacement.clean.frozen.unknown
        named = "".join(
            f"; {name} is a {kind}, and no norm that can be held constant" for name, kind in unknown.items()
        )
        what = "is not linear" if linear > limit else "computes something else"
        raise ConfigError(
            f"{replacement.lm.name} {what} where attention patterns, gates, norms and what its transcoders "
            f"replace are held constant (off by {max(linear, faithful):.1e} of what adds up, {limit:g} is "
            f"rounding): no graph can be drawn of it{named[:300]}"
        )
    return faithful


def together(values: Values) -> Tensor:
    """Return all targets side by side [N, P + T]."""
    return torch.cat([values.pre_NP, values.logits_NT], 1)


def untouched(replacement: Replacement) -> Tensor:
    """Return what all targets are in the untouched model [P + T]."""
    W_TD, bias_T = replacement.clean.head.rows(replacement.tokens_T)
    return torch.cat([replacement.code_P, W_TD @ replacement.clean.final_D + bias_T])


def worst(error: Tensor, size: Tensor) -> float:
    """Return the largest error relative to sizes; infinite where one is no number."""
    found = (error.abs() / size.clamp(min=torch.finfo(size.dtype).tiny)).nan_to_num(nan=torch.inf)
    return float(found.max()) if found.numel() else 0.0


def check_rows(replacement: Replacement, store: Store, faithful: float) -> tuple[Checks, Tensor]:
    """Check every row of a graph against independent forwards.

    Returns:
        The checks; and what every target is without any source [P + T].

    Raises:
        ConfigError: rows do not add up to what targets are in the untouched model, or do not tell what they
            are when sources change.
    """
    factor_NC = settings(replacement)
    zero_C = torch.zeros_like(factor_NC[:1])
    found = together(replacement.run(torch.cat([zero_C, factor_NC]))).cpu().double()
    constant_t, changed_Nt = found[0], found[1:]
    whole_t, factor_NC = untouched(replacement).cpu().double(), factor_NC.cpu().double()
    sums = absolute = linear = 0.0
    targets = 0
    for block in store.blocks:
        targets_n, rows_nC = store.read(block)
        rows_nC = rows_nC.double()
        base_n = constant_t[targets_n]
        size_n = rows_nC.abs().sum(1) + base_n.abs()
        off_n = rows_nC.sum(1) + base_n - whole_t[targets_n]
        sums, absolute = max(sums, worst(off_n, size_n)), max(absolute, float(off_n.abs().max()))
        moved_Nn = factor_NC @ rows_nC.T + base_n - changed_Nt[:, targets_n]
        linear = max(linear, worst(moved_Nn, size_n))
        targets += len(targets_n)
    limit = TOLERANCE[store.dtype]
    for name, error in (("add up to their targets", sums), ("tell what changes do", linear)):
        if error > limit:
            raise ConfigError(
                f"rows of the graph of {replacement.lm.name} do not {name}: off by {error:.1e} of what "
                f"adds up, {limit:g} is rounding; no graph can be drawn of it"
            )
    frozen = replacement.clean.frozen
    checks = Checks(
        row_sums=sums,
        row_sums_absolute=absolute,
        linear=linear,
        faithful=faithful,
        tolerance=limit,
        dtype=str(store.dtype).removeprefix("torch."),
        targets=targets,
        norms=len(frozen.norms),
        patterns=len(frozen.patterns) - frozen.gates,
        gates=frozen.gates,
    )
    return checks, constant_t
