"""The `sae-dist` command."""

import errno
import os
import sys
import threading
import traceback
from importlib import metadata
from pathlib import Path

from sae_dist.core.errors import ConfigError, SaeDistError, Told
from sae_dist.core.run_folder import LOGS
from sae_dist.core.text import class_and_line
from sae_dist.launch.words import DASHBOARD, EVAL, HARVEST, SUBMIT, TRAIN, USAGE, WHAT_IT_DOES

RUN = ("RUN", "one run folder, such as outputs/my_run")
ON_FOLDER = {
    "report": ("FOLDER", "one folder of a run, a grid or a sweep, such as outputs/my_run"),
    "resume": RUN,
    "sweep-table": ("SWEEP", "one folder of runs, such as outputs/my_sweep"),
}
"""Commands that take a folder and nothing else."""

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
    elif command == "submit":
        submit(rest)
    elif command == "bench":
        from sae_dist.bench.command import bench

        bench(rest)
    elif command in ("export", "import"):
        from sae_dist.launch.exchange import export_command, import_command

        (export_command if command == "export" else import_command)(rest)
    elif command == "dashboard":
        dashboard(rest)
    elif command == "eval":
        evaluate(rest)
    elif command in ON_FOLDER:
        word, what = ON_FOLDER[command]
        if rest in (["--help"], ["-h"]):
            print(f"sae-dist {command} {word}\n\n{word} is {what}.\n\n{WHAT_IT_DOES[command]}")
        elif len(rest) != 1:
            raise ConfigError(f"sae-dist {command} takes {what}")
        else:
            on_run(command, Path(rest[0]))
    elif command in ("rank", "harvest-rank", "bench-rank"):
        if len(rest) != 3 or not rest[2].isdecimal():
            raise ConfigError(f"sae-dist {command} is one process of a run, which sae-dist starts itself")
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
    if words[:1] == ["--help"] and len(words) == 2:
        from sae_dist.launch.keys import explain

        print(explain(words[1]))
    elif "--help" in words or "-h" in words:
        from sae_dist.launch.keys import groups_in_words

        print(TRAIN.format(groups=groups_in_words()), end="")
    elif "--cfg" in words:
        from sae_dist.launch.compose import print_config

        print(print_config(overrides), end="")
    elif "-m" in words or "--multirun" in words:
        from sae_dist.launch.sweep import multirun_command

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


def evaluate(words: list[str]) -> None:
    """`sae-dist eval`."""
    if "--help" in words or "-h" in words:
        print(EVAL, end="")
        return
    from sae_dist.launch.evaluate import eval_command

    eval_command(words)


def submit(words: list[str]) -> None:
    """`sae-dist submit`."""
    overrides = [word for word in words if word not in ("--dry-run", "--help", "-h")]
    if len(overrides) < len(words) and "--dry-run" not in words:
        from sae_dist.launch.compose import groups, schema

        keys = [key.removeprefix("cluster.") for key in schema() if key.startswith("cluster.")]
        print(SUBMIT.format(options=", ".join(groups()["cluster"]), keys=", ".join(keys)), end="")
        return
    from sae_dist.launch.submit import submit_command

    submit_command(overrides, only_write="--dry-run" in words)


def dashboard(words: list[str]) -> None:
    """`sae-dist dashboard`."""
    if words in (["--help"], ["-h"]):
        print(DASHBOARD, end="")
        return
    if len(words) != 1:
        raise ConfigError("sae-dist dashboard takes one project of W&B, PROJECT or ENTITY/PROJECT")
    from sae_dist.metrics import dashboard as made

    print(made.dashboard(words[0]))


def without_job(words: list[str]) -> list[str]:
    """`--cfg job` as one word, `--cfg`."""
    if "--cfg" not in words:
        return words
    place = words.index("--cfg")
    if words[place + 1 : place + 2] != ["job"]:
        raise ConfigError("--cfg prints one thing: write --cfg job")
    return [*words[:place], "--cfg", *words[place + 2 :]]


def on_run(command: str, folder: Path) -> None:
    """The commands of `ON_FOLDER`."""
    if command == "resume":
        from sae_dist.launch.run import resume_command

        resume_command(folder)
        return
    if command == "sweep-table":
        from sae_dist.launch.sweep import table_command

        table_command(folder)
        return
    from sae_dist.launch.report import report_command

    report_command(folder)


def rank(command: str, folder: Path, pipe: int) -> None:
    """One spawned rank. Its reason for failing, in one line, is left where the parent finds it."""
    if command == "rank":
        from sae_dist.train.rank import run_rank as work
    elif command == "bench-rank":
        from sae_dist.bench.stream.ranks import bench_rank as work
    else:
        from sae_dist.train.harvest import harvest_rank as work

    threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()
    logs, name = folder / LOGS, f"rank_{os.environ['RANK']}"
    try:
        work(folder)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK:
            error = cannot_write(error)
        reason, exit_code = str(error), getattr(error, "exit_code", 1)
        if not isinstance(error, SaeDistError):
            with open(logs / f"{name}.log", "a", encoding="utf-8") as log:
                traceback.print_exc(file=log)
            reason = f"{class_and_line(error)} (traceback in {logs / name}.log)"
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
