"""Sinks of the flushed metrics: metrics.jsonl and the console. W&B has its own file."""

import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from sae_dist.config.counts import parse_count
from sae_dist.config.needs import evaluation_tokens
from sae_dist.config.run import Resolved, RunConfig
from sae_dist.core.files import write_text
from sae_dist.core.parsing import parse_json
from sae_dist.core.progress import clock
from sae_dist.core.run_folder import METRICS
from sae_dist.core.text import print_line
from sae_dist.metrics.alerts import Alerts
from sae_dist.metrics.wandb_sink import WandbSink

PLAIN_LINE_EVERY_S = 10.0
WAITS_EVERY_S = 60.0
WAITS = {"perf/wait_for_chunks_s": "consumers", "perf/wait_for_credit_s": "producers"}


class Sink(Protocol):
    """A receiver of metrics, one row per flush with at least `step` and `tokens`, and of alerts."""

    def write(self, row: dict[str, Any]) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def close(self) -> None: ...


def make_sinks(
    cfg: RunConfig, folder: Path, *, resume_step: int, run_id: str, console: "Sink | None" = None
) -> list[Sink]:
    """Make the sinks that the config asks for; only the rank that writes metrics calls this.

    Args:
        console: the console that the dictionaries of a grid share; None: this run's own.
        resume_step: step the run continues from; 0 for a new run.
        run_id: the W&B run's id; kept by the caller, so that a resumed run continues its curves.
    """
    shown: list[Sink] = []
    if cfg.metrics.console:
        shown.append(console or make_console(cfg, resume_step))
    if cfg.metrics.wandb != "off":
        shown.append(WandbSink(cfg, folder, run_id))
    of_many = folder.name if isinstance(console, GridConsole) else None
    return [JsonlSink(folder / METRICS, resume_step), *shown, Alerts(shown, of_many)]


def make_console(cfg: RunConfig, resume_step: int, dictionaries: int = 1) -> Sink:
    """Make one console for all dictionaries that are trained together."""
    after = evaluation_tokens(cfg) if isinstance(cfg, Resolved) else 0
    console = ConsoleSink(parse_count(cfg.train_tokens, "train_tokens"), resume_step * cfg.batch, after)
    return console if dictionaries == 1 else GridConsole(console)


class JsonlSink:
    """The file metrics.jsonl: one JSON object per line, flushed after each; NaN and inf become null.

    Opening drops the lines of steps after `resume_step`, and a line cut short by a crash, so that each step
    is in the file once.
    """

    def __init__(self, path: Path, resume_step: int):
        kept = [row for row in read_rows(path) if row["step"] <= resume_step] if path.exists() else []
        write_text(path, "".join(json.dumps(row) + "\n" for row in kept), synced=True)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115

    def write(self, row: dict[str, Any]) -> None:
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        self._file.write(json.dumps(finite) + "\n")
        self._file.flush()

    def alert(self, title: str, text: str) -> None:
        """Ignore the alert: the file holds numbers only."""

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a metrics.jsonl, without a last line that was cut short."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [parse_json(line) for line in lines[:-1]]


class ConsoleSink:
    """A progress bar on stderr; plain lines, ten seconds apart, if stderr is not a terminal.

    Once a minute, a run with producers prints how long they and the consumers waited for each other.

    Args:
        total_tokens: of the whole run.
        start_tokens: trained on before this start. The first row of a continued run has waited for lanes that
            were read again, so that the time left is estimated from there on.
        after_tokens: tokens that take about as long as what follows training.
    """

    def __init__(self, total_tokens: int, start_tokens: int, after_tokens: int = 0):
        self._total, self._after = total_tokens, after_tokens
        self._started = time.monotonic()
        self._start_tokens = start_tokens
        self._continued = start_tokens > 0
        self._last_line = -math.inf
        self._unprinted: list[dict[str, Any]] | None = None
        self._waits, self._waits_since = dict.fromkeys(WAITS, 0.0), self._started
        self._bar = (
            tqdm(total=total_tokens, initial=start_tokens, unit="tok", unit_scale=True, file=sys.stderr)
            if sys.stderr.isatty()
            else None
        )

    def write(self, row: dict[str, Any]) -> None:
        self.show([row])

    def show(self, rows: list[dict[str, Any]]) -> None:
        """Print one line, or move the bar once, for rows of one step."""
        self._say_waits(rows[0])
        if self._continued:
            self._continued, self._started = False, time.monotonic()
            self._start_tokens = rows[0]["tokens"]
        if self._bar is not None:
            self._bar.set_postfix_str(_quality(rows), refresh=False)
            self._bar.update(rows[0]["tokens"] - self._bar.n)
            return
        self._unprinted = rows
        if time.monotonic() - self._last_line >= PLAIN_LINE_EVERY_S:
            self._print_line()

    def alert(self, title: str, text: str) -> None:
        print_line(f"alert: {title}: {text}")

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._unprinted is not None:
            self._print_line()

    def _say_waits(self, row: dict[str, Any]) -> None:
        for key in WAITS:
            self._waits[key] += row.get(key, 0.0)
        seconds = time.monotonic() - self._waits_since
        if seconds >= WAITS_EVERY_S and any(key in row for key in WAITS):
            shares = (f"{WAITS[key]} {waited / seconds:.1%}" for key, waited in self._waits.items())
            print_line(f"waited of the last {seconds:.0f} s: {', '.join(shares)}")
            self._waits, self._waits_since = dict.fromkeys(WAITS, 0.0), time.monotonic()

    def _print_line(self) -> None:
        rows, self._unprinted, self._last_line = self._unprinted, None, time.monotonic()
        assert rows is not None
        row = rows[0]
        rate = row.get("perf/tokens_per_second")
        print(
            f"step {row['step']}  tokens {row['tokens']:,} of {self._total:,}  "
            + (f"{rate:,.0f} tok/s  " if rate else "")
            + f"{self._time_left(row['tokens'])}{_quality(rows)}",
            file=sys.stderr,
            flush=True,
        )

    def _time_left(self, tokens: int) -> str:
        """Estimate the time to the end, that of the evaluation included; empty: nothing to go by yet."""
        done, left = tokens - self._start_tokens, self._total - tokens + self._after
        if done <= 0:
            return ""
        seconds = (time.monotonic() - self._started) / done * left
        return f"ETA {clock(seconds)}{' with evaluation' if self._after else ''}  "


class GridConsole:
    """The console of a grid: one line for all dictionaries, with the range of each number."""

    def __init__(self, console: ConsoleSink):
        self._console = console
        self._rows: list[dict[str, Any]] = []

    def write(self, row: dict[str, Any]) -> None:
        if self._rows and row["step"] != self._rows[0]["step"]:
            self._pass_on()
        self._rows.append(row)

    def alert(self, title: str, text: str) -> None:
        self._console.alert(title, text)

    def close(self) -> None:
        if self._rows:
            self._pass_on()
        self._console.close()

    def _pass_on(self) -> None:
        self._console.show(self._rows)
        self._rows = []


def _quality(rows: list[dict[str, Any]]) -> str:
    shown = (
        ("FVU", "loss/fvu", ".4f"),
        ("L0", "sparsity/l0", ".1f"),
        ("dead", "latents/dead_fraction", ".1%"),
    )
    words = []
    for word, key, form in shown:
        values = sorted(row[key] for row in rows if row.get(key) is not None)
        ends = values[:1] + values[-1:] if len(values) > 1 else values
        if ends:
            words.append(f"{word} " + " to ".join(f"{value:{form}}" for value in ends))
    return " ".join(words)
