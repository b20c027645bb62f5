"""The `sae-dist` command."""

import errno
import os
import sys
import threading
import traceback
from importlib import metadata
from pathlib import Path

from sae_dist.core.errors import ConfigError, SaeDistError, Told

USAGE = """sae-dist: sparse autoencoders over the activations of language models

  sae-dist train [key=value ...]    train, export and evaluate a dictionary   (train --help)
  sae-dist harvest [key=value ...]  keep activations, to train many dictionaries on   (harvest --help)
  sae-dist export RUN               export a run's newest checkpoint again
  sae-dist eval RUN                 evaluate a run's export again
  sae-dist bench ...                compare with other trainers, on this machine   (bench --help)
  sae-dist --version

Exit codes: 0 done; 2 the input is wrong (one line says what); 75 stopped on request and resumable; 1 anything
else.
"""

TRAIN = """sae-dist train [key=value ...] [-m] [--cfg job]

Trains a dictionary, exports it, evaluates it on held-out data. Without arguments: a small language model and
text that are already on this machine.

  -m            one run for every combination of comma lists: sae-dist train -m sae.k=16,32 optim.lr=1e-3,3e-3
  --cfg job     print the composed configuration and exit

Groups (group=option):
{groups}

Main keys (key=value; all of them: --cfg job):
  name=...                      run folder in output=outputs; default: made of the values that matter
  train_tokens=2M               activations to train on; counts are written 500k, 2M, 1e9
  batch=2048                    activations per step, all processes together
  llm.name=gpt2                 any causal or encoder model of transformers, by name or path
  hook=layers.12                module path, output by default; layers.12.mlp:in is an input;
                                blocks.12.hook_resid_post is translated; null: the middle layer
  tokens.path=FOLDER            your own text
  sae.num_latents=65536         or sae.expansion=32 times the width
  sae.k=32                      codes per activation
  optim.lr=null                 null: a law of steps, latents and width
  grid.num_latents=[4096,8192]  many dictionaries on one stream, the LLM runs once for all: every combination
                                of grid.num_latents, grid.k, grid.lr, grid.hook and grid.seed
  topology.shard=2              split the dictionary over processes; topology.producers=1 lets others run
                                the LLM; topology.dp=2 doubles the whole
  resume=auto                   continue an unfinished run
  precision=float32             float64 (to compare runs), bfloat16 (activations travel in it)
  metrics.wandb=off             auto, online, offline, off

Examples:
  sae-dist train
  sae-dist train sae.num_latents=16384 train_tokens=10M topology.shard=2
  sae-dist train llm=minilm hook=encoder.layer.2 sae.num_latents=12288
  sae-dist train activations=file activations.path=acts.npy sae.expansion=16
  sae-dist train activations=cache activations.path=outputs/cache    what sae-dist harvest wrote
  sae-dist train 'grid.num_latents=[4096,16384]' 'grid.k=[16,32]'
  sae-dist train experiment=toy_superposition
"""

HARVEST = """sae-dist harvest [key=value ...] [--cfg job]

Runs the frozen LLM over the text and keeps its activations as tar files of chunks, with a manifest: what
sae-dist train activations=cache activations.path=FOLDER then reads, in the order and number of a run that
computes them itself. Takes the keys of sae-dist train (train --help); those of the dictionary are not read.

  name=...                  the folder in output=outputs; default: made of the values that matter
  train_tokens=2M           enough for runs of this length, and for shorter ones
  cache.dtype=bfloat16      float32 or float64 keep all digits: training is then bit for bit the same
  cache.shard_chunks=32     consecutive chunks of a lane in one tar file
  topology.producers=4      as many processes, each with lanes of its own; the files are the same
  resume=auto               continue an unfinished harvest; write again what a finished one has lost

Examples:
  sae-dist harvest train_tokens=2M name=cache
  sae-dist train activations=cache activations.path=outputs/cache sae.num_latents=16384
"""

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns its exit code. Only unexpected errors leave a traceback."""
    words = sys.argv[1:] if arguments is None else arguments
    try:
        return dispatch(words)
    except SaeDistError as error:
        report(error)
        return error.exit_code
    except OSError as error:
        if error.errno not in DISK:
            raise
        report(cannot_write(error))
        return SaeDistError.exit_code
    except KeyboardInterrupt:
        print("sae-dist: interrupted", file=sys.stderr)
        return 1


def dispatch(words: list[str]) -> int:
    """Find the command and run it."""
    command, rest = (words[0], words[1:]) if words else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(USAGE, end="")
    elif command == "--version":
        print(version())
    elif command == "train":
        train(rest)
    elif command == "harvest":
        harvest(rest)
    elif command == "bench":
        from sae_dist.bench.command import bench

        bench(rest)
    elif command in ("export", "eval"):
        if rest in (["--help"], ["-h"]):
            print(f"sae-dist {command} RUN\n\nRUN is a run folder, such as outputs/my_run.")
        elif len(rest) != 1:
            raise ConfigError(f"sae-dist {command} takes one run folder, such as outputs/my_run")
        else:
            on_run(command, Path(rest[0]))
    elif command in ("rank", "harvest-rank", "bench-rank"):
        rank(command, Path(rest[0]), int(rest[2]))
    else:
        raise ConfigError(f"there is no command {command}; see sae-dist --help")
    return 0


def version() -> str:
    """The installed version."""
    try:
        return metadata.version("sae-dist")
    except metadata.PackageNotFoundError:
        return "not installed"


def train(words: list[str]) -> None:
    """`sae-dist train`."""
    words = without_job(words)
    overrides = [word for word in words if word not in ("-m", "--multirun", "--cfg", "--help", "-h")]
    if "--help" in words or "-h" in words:
        from sae_dist.launch.compose import groups

        lines = [f"  {name}={'|'.join(options)}" for name, options in groups().items()]
        print(TRAIN.format(groups="\n".join(lines)), end="")
    elif "--cfg" in words:
        from sae_dist.launch.compose import print_config

        print(print_config(overrides), end="")
    elif "-m" in words or "--multirun" in words:
        from sae_dist.launch.run import multirun_command

        multirun_command(overrides)
    else:
        from sae_dist.launch.run import train_command

        train_command(overrides)


def harvest(words: list[str]) -> None:
    """`sae-dist harvest`."""
    words = without_job(words)
    overrides = [word for word in words if word not in ("--cfg", "--help", "-h")]
    if "--help" in words or "-h" in words:
        print(HARVEST, end="")
    elif "--cfg" in words:
        from sae_dist.launch.compose import print_config

        print(print_config(overrides), end="")
    else:
        from sae_dist.launch.harvest import harvest_command

        harvest_command(overrides)


def without_job(words: list[str]) -> list[str]:
    """`--cfg job` as one word, `--cfg`."""
    if "--cfg" not in words:
        return words
    place = words.index("--cfg")
    if words[place + 1 : place + 2] != ["job"]:
        raise ConfigError("--cfg prints one thing: write --cfg job")
    return [*words[:place], "--cfg", *words[place + 2 :]]


def on_run(command: str, folder: Path) -> None:
    """`sae-dist export RUN`, `sae-dist eval RUN`."""
    if command == "export":
        from sae_dist.train.finish import export_run

        print(export_run(folder))
        return
    from sae_dist.analysis.run import evaluate_run
    from sae_dist.analysis.table import format_table

    print(format_table(evaluate_run(folder)))


def rank(command: str, folder: Path, pipe: int) -> None:
    """One spawned rank. Its reason for failing, in one line, is left where the parent finds it."""
    if command == "rank":
        from sae_dist.train.run import run_rank as work
    elif command == "bench-rank":
        from sae_dist.bench.stream_ranks import bench_rank as work
    else:
        from sae_dist.train.harvest import harvest_rank as work

    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    logs, name = folder / "logs", f"rank_{os.environ['RANK']}"
    try:
        work(folder)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            error = cannot_write(error)
        reason, exit_code = str(error), getattr(error, "exit_code", 1)
        if not isinstance(error, SaeDistError):
            with open(logs / f"{name}.log", "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            first = (reason.splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first} (traceback in {logs / name}.log)"
        try:
            (logs / f"{name}.error").write_text(reason, encoding="utf-8")
        except OSError:
            # The disk that the reason is about; rank 0 still has the terminal.
            print(f"sae-dist: {name}: {reason}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # Leave at once: a process group cannot be closed while other ranks are in a collective.
        os._exit(exit_code)


def _end_with_parent(pipe: int) -> None:
    """The parent holds the other end of the pipe: end of file means that it is gone."""
    while os.read(pipe, 1):
        pass
    os._exit(1)


def cannot_write(error: OSError) -> SaeDistError:
    """A disk that takes no more, in one line."""
    what = error.filename or "the run folder"
    return SaeDistError(f"cannot write {what}: {error.strerror}; make room and continue with resume=auto")


def report(error: SaeDistError) -> None:
    """One line on stderr."""
    if not isinstance(error, Told):
        print(f"sae-dist: error: {' '.join(str(error).split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
