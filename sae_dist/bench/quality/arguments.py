"""The arguments of `sae-dist bench quality`, `defaults` and `law`."""

import argparse
import dataclasses
from dataclasses import dataclass

from sae_dist.bench.arguments import (
    Parser,
    check_k,
    check_tokens,
    count,
    counts,
    device,
    positive,
    read_pythons,
    some_of,
)
from sae_dist.bench.contestant import check_peer_python
from sae_dist.bench.quality.contestants import CONTESTANTS
from sae_dist.bench.quality.plan import QualityPlan


@dataclass(frozen=True)
class QualityPreset:
    """Defaults of one size of benchmark. Its shapes are every number of latents with every k."""

    tokens: int
    latents: tuple[int, ...]
    k: tuple[int, ...]
    seeds: int
    test_rows: int


PRESETS = {
    "default": QualityPreset(1_000_000, (4096,), (32,), 3, 120_000),
    "small": QualityPreset(200_000, (2048,), (32,), 2, 100_000),
    # One pass over the text that Python carries gives a little less than 8M activations.
    "full": QualityPreset(7_000_000, (4096, 16384), (16, 64), 3, 500_000),
}


def quality(words: list[str]) -> None:
    """Run `sae-dist bench quality`."""
    plan = read_plan(words)
    from sae_dist.bench.quality.run import run_quality

    run_quality(plan)


def read_plan(words: list[str]) -> QualityPlan:
    """Return the benchmark that the arguments ask for.

    Raises:
        ConfigError: an argument is wrong.
    """
    given = quality_parser().parse_args(words)
    preset = PRESETS["small" if given.small else "full" if given.full else "default"]
    tokens = count(given.tokens, "--tokens") if given.tokens else preset.tokens
    latents = counts(given.latents, "--latents") if given.latents else preset.latents
    ks = counts(given.k, "--k") if given.k else preset.k
    seeds = count(given.seeds, "--seeds") if given.seeds is not None else preset.seeds
    check_tokens(tokens, QualityPlan.batch)
    check_k(max(ks), min(latents))
    only = some_of(given.only, "--only", tuple(CONTESTANTS), "contestants")
    peer_python = read_pythons(given.peer_python or "")
    check_peer_python(peer_python)
    return QualityPlan(
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
    """Return the parser of `sae-dist bench quality`."""
    parser = Parser(
        prog="sae-dist bench quality",
        description="Held-out FVU, dead latents and time of sae_dist and of its peers, each by its own "
        "trainer, on activations of all-MiniLM-L6-v2 (layer 2). Resumable: run it again.",
    )
    parser.add_argument("--folder", help="everything it writes")
    parser.add_argument("--only", help=f"some of {','.join(CONTESTANTS)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--small", action="store_true", help=sized("small"))
    size.add_argument("--full", action="store_true", help=f"for a GPU: {sized('full')}")
    parser.add_argument("--tokens", help=f"training activations (default: {sized('default')})")
    parser.add_argument("--latents", default=None, help="one or several: 4096,16384")
    parser.add_argument("--k", default=None, help="one or several: 16,64")
    parser.add_argument("--seeds", help="at the best learning rate")
    parser.add_argument(
        "--refine", action="store_true", help="after the grid of learning rates, half a step to either side"
    )
    parser.add_argument("--peer-python")
    parser.add_argument("--device")
    return parser


def sized(name: str) -> str:
    """Describe a preset in words."""
    preset = PRESETS[name]
    latents, ks = (", ".join(map(str, numbers)) for numbers in (preset.latents, preset.k))
    return f"{preset.tokens:,} tokens, {latents} latents, k {ks}, {preset.seeds} seeds"


def defaults(words: list[str]) -> None:
    """Run `sae-dist bench defaults`."""
    from sae_dist.bench.quality.studies import STUDIES, run_defaults

    parser = Parser(
        prog="sae-dist bench defaults",
        description="Held-out FVU and dead latents of sae_dist with one setting changed at a time, each with "
        "a learning rate of its own or all with --lr, on the data of sae-dist bench quality. Resumable: run "
        "it again.",
    )
    parser.add_argument("--folder")
    parser.add_argument("--study", help=f"some of {','.join(STUDIES)} (all)")
    parser.add_argument("--only", help="some of a study's variants (all)")
    parser.add_argument("--lr", help="one learning rate for all; otherwise a sweep for each")
    parser.add_argument("--tokens", default="1M", help="training activations")
    parser.add_argument("--latents")
    parser.add_argument("--k")
    parser.add_argument("--seeds", default="3", help="at the best learning rate")
    parser.add_argument("--device")
    given = parser.parse_args(words)
    studies = some_of(given.study, "--study", tuple(STUDIES), "studies")
    known = [name for study in studies for name in STUDIES[study]]
    only = some_of(given.only, "--only", known, "variants")
    plan = own_plan(given, count(given.tokens, "--tokens"), counts(given.latents, "--latents"))
    if given.lr:
        plan = dataclasses.replace(plan, lr=positive(given.lr, "--lr"))
    for study in studies:
        if set(only) & set(STUDIES[study]):
            run_defaults(plan, study, only)


def law(words: list[str]) -> None:
    """Run `sae-dist bench law`."""
    parser = Parser(
        prog="sae-dist bench law",
        description="Sweep our learning rate at several lengths of run, batches and numbers of latents, "
        "varied one at a time around the first of each, and fit the law that optim.lr=null follows. "
        "Resumable: run it again.",
    )
    parser.add_argument("--folder", help="gets law.json")
    parser.add_argument("--tokens", default="1M,250k,4M", help="activations of a run")
    parser.add_argument("--batch", default="2048,512,8192", help="activations of a step")
    parser.add_argument("--latents", default="4096,16384", help="of the dictionaries")
    parser.add_argument("--k")
    parser.add_argument("--device")
    given = parser.parse_args(words)
    tokens, batches = counts(given.tokens, "--tokens"), counts(given.batch, "--batch")
    latents = counts(given.latents, "--latents")
    plan = own_plan(given, max(tokens), latents)
    from sae_dist.bench.quality.studies import law_in_words, run_law

    print(law_in_words(run_law(plan, tokens, batches, latents)))


def own_plan(given: argparse.Namespace, tokens: int, latents: tuple[int, ...]) -> QualityPlan:
    """Return the benchmark of a study of our own settings.

    Raises:
        ConfigError: an argument is wrong.
    """
    k = count(given.k, "--k")
    check_k(k, min(latents))
    check_tokens(tokens, QualityPlan.batch)
    return QualityPlan(
        folder=given.folder,
        tokens=tokens,
        shapes=tuple((F, k) for F in latents),
        seeds=count(getattr(given, "seeds", "1"), "--seeds"),
        only=("ours",),
        device=device(given.device),
    )
