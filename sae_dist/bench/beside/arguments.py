"""The arguments of `sae-dist bench beside`."""

from sae_dist.bench.arguments import Parser, count, counts, device


def beside(words: list[str]) -> None:
    """Run `sae-dist bench beside`."""
    parser = Parser(
        prog="sae-dist bench beside",
        description="Time and memory of a language model with its dictionary beside it: spliced in, encoding "
        "only, steering one latent, watching a few. Each is taken in turn with the model alone in one "
        "process, in prefill and in decoding with a KV cache, beside floors in FLOP and bytes. And what "
        "weights in bfloat16 cost in cross-entropy on the run's held-out text.",
    )
    parser.add_argument("run", metavar="RUN", help="a run folder, an export, or what else sd.load opens")
    parser.add_argument("--folder", help="gets beside.csv, .md")
    parser.add_argument("--batch", default="1,8,64", help="sequences at a time")
    parser.add_argument("--watch", default="16", help="latents on the watch list")
    parser.add_argument("--context", default="128", help="tokens of a prompt")
    parser.add_argument("--decode", default="32", help="tokens decoded after a prompt")
    parser.add_argument("--rounds", default="5", help="of all in turn; medians are shown")
    parser.add_argument("--ce-tokens", default="20k", help="held-out tokens for cross-entropy; 0: none")
    parser.add_argument("--device")
    given = parser.parse_args(words)
    batches = counts(given.batch, "--batch")
    names = ("watch", "context", "decode", "rounds")
    sizes = {name: count(getattr(given, name), f"--{name}") for name in names}
    ce_tokens = 0 if given.ce_tokens == "0" else count(given.ce_tokens, "--ce-tokens")
    where = device(given.device)
    from sae_dist.bench.beside.run import BesidePlan, run_beside

    plan = BesidePlan(given.folder, given.run, batches, ce_tokens=ce_tokens, device=where, **sizes)
    print(run_beside(plan))
