"""The words of `sae-dist bench stream` and `sae-dist bench mixing`."""

from pathlib import Path

from sae_dist.bench.arguments import DEVICES, FOLDER, Parser, count, counts, device
from sae_dist.core.errors import ConfigError

PARTS = ("wire", "capture", "split", "grid")


def stream(words: list[str]) -> None:
    """`sae-dist bench stream`."""
    parser = Parser(
        prog="sae-dist bench stream",
        description="The transport beside bare isend and irecv, the capture beside the bare forward of "
        "transformers, and the step of a producer and a consumer beside the longer phase of one process: "
        "taken in turn, medians. And a grid of dictionaries beside the same in runs of their own.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"gets stream.csv, .md ({FOLDER})")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--rows", default="1024", help="activations of a chunk (1024)")
    parser.add_argument("--widths", default="256,4096", help="wire: D of the activations (256,4096)")
    parser.add_argument("--chunks", default="200", help="wire: chunks of a round (200)")
    parser.add_argument("--latents", default="1024,16384", help="split, grid (its first): (1024,16384)")
    parser.add_argument("--batch", default="2048", help="split, grid: activations of a step (2048)")
    parser.add_argument("--steps", default="60", help="split, grid: of each run (60)")
    parser.add_argument("--rounds", default="3", help="of all contestants in turn; medians are shown (3)")
    parser.add_argument("--llm", default="embedded", help="grid: llm=embedded or llm=minilm (embedded)")
    parser.add_argument("--dictionaries", default="8", help="grid: how many (8)")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    given = parser.parse_args(words)
    parts = tuple(given.only.split(","))
    for part in parts:
        if part not in PARTS:
            raise ConfigError(f"--only {part}: the parts are {', '.join(PARTS)}")
    widths, latents = counts(given.widths, "--widths"), counts(given.latents, "--latents")
    names = ("rows", "chunks", "batch", "steps", "rounds", "dictionaries")
    sizes = {name: count(getattr(given, name), f"--{name}") for name in names}
    where = device(given.device)
    from sae_dist.bench.stream.run import StreamPlan, run_stream

    plan = StreamPlan(
        given.folder, parts, widths=widths, latents=latents, device=where, llm=given.llm, **sizes
    )
    print(run_stream(plan))


def mixing(words: list[str]) -> None:
    """`sae-dist bench mixing`."""
    parser = Parser(
        prog="sae-dist bench mixing",
        description="Rows of one document in a batch, and how much they resemble each other, by block size; "
        "with --train the held-out FVU of short runs too.",
    )
    parser.add_argument("--folder", type=Path, default=Path(FOLDER), help=f"gets mixing.csv, .md ({FOLDER})")
    parser.add_argument("--blocks", default="2,1,4,8", help="shuffle.block_chunks (2,1,4,8)")
    parser.add_argument("--chunk-rows", default="1024,256", help="(1024,256, others with the first block)")
    parser.add_argument("--tokens", default="500k", help="activations of the run whose batches count (500k)")
    parser.add_argument("--train", help="activations of a training run at each setting (none)")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    given = parser.parse_args(words)
    blocks, chunk_rows = counts(given.blocks, "--blocks"), counts(given.chunk_rows, "--chunk-rows")
    tokens = count(given.tokens, "--tokens")
    train = count(given.train, "--train") if given.train else 0
    where = device(given.device)
    from sae_dist.bench.stream.mixing import MixingPlan, run_mixing

    print(run_mixing(MixingPlan(given.folder, blocks, chunk_rows, tokens, train, where)), end="")
