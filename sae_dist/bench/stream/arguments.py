"""The arguments of `sae-dist bench stream` and `sae-dist bench mixing`."""

from sae_dist.bench.arguments import Parser, count, counts, device, some_of

PARTS = ("wire", "capture", "split", "grid")


def stream(words: list[str]) -> None:
    """Run `sae-dist bench stream`."""
    parser = Parser(
        prog="sae-dist bench stream",
        description="The transport beside bare isend and irecv, the capture beside the bare forward of "
        "transformers, and the step of a producer and a consumer beside the longer phase of one process: "
        "taken in turn, medians. And a grid of dictionaries beside the same in runs of their own.",
    )
    parser.add_argument("--folder", help="gets stream.csv, .md")
    parser.add_argument("--only", help=f"some of {','.join(PARTS)} (all)")
    parser.add_argument("--rows", default="1024", help="activations of a chunk")
    parser.add_argument("--widths", default="256,4096", help="wire: D of the activations")
    parser.add_argument("--chunks", default="200", help="wire: chunks of a round")
    parser.add_argument("--latents", default="1024,16384", help="split: one or several; grid: the first")
    parser.add_argument("--batch", help="split, grid: activations of a step")
    parser.add_argument("--steps", default="60", help="split, grid: of each run")
    parser.add_argument("--rounds", default="3", help="of all contestants in turn; medians are shown")
    parser.add_argument("--llm", default="embedded", help="grid: llm=embedded or llm=minilm")
    parser.add_argument("--dictionaries", default="8", help="grid: how many")
    parser.add_argument("--device")
    given = parser.parse_args(words)
    parts = some_of(given.only, "--only", PARTS, "parts")
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
    """Run `sae-dist bench mixing`."""
    parser = Parser(
        prog="sae-dist bench mixing",
        description="Rows of one document in a batch, and how much they resemble each other, by block size; "
        "with --train the held-out FVU of short runs too.",
    )
    parser.add_argument("--folder", help="gets mixing.csv, .md")
    parser.add_argument("--blocks", default="2,1,4,8", help="shuffle.block_chunks")
    parser.add_argument(
        "--chunk-rows", default="1024,256", help="shuffle.chunk_rows; all but the first with the first block"
    )
    parser.add_argument("--tokens", default="500k", help="activations of the run whose batches count")
    parser.add_argument("--train", help="activations of a training run at each setting (none)")
    parser.add_argument("--device")
    given = parser.parse_args(words)
    blocks, chunk_rows = counts(given.blocks, "--blocks"), counts(given.chunk_rows, "--chunk-rows")
    tokens = count(given.tokens, "--tokens")
    train = count(given.train, "--train") if given.train else 0
    where = device(given.device)
    from sae_dist.bench.stream.mixing import MixingPlan, run_mixing

    print(run_mixing(MixingPlan(given.folder, blocks, chunk_rows, tokens, train, where)), end="")
