"""A graph from what is asked for to its files: traced, checked in the real model, written."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from sae_dist.core.errors import ConfigError
from sae_dist.core.files import write_json
from sae_dist.core.parsing import read_bounded, reading
from sae_dist.core.text import print_line
from sae_dist.graph.asked import Asked
from sae_dist.graph.check.check import check
from sae_dist.graph.check.seeds import check_places
from sae_dist.graph.check.verdict import Verdict
from sae_dist.graph.ranks import together
from sae_dist.graph.sites import sites_of
from sae_dist.graph.trace import ROWS, trace
from sae_dist.graph.written import JSON

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph

PAGE, NEURONPEDIA, VERDICT = "graph.html", "neuronpedia.json", "check.json"


@dataclass(frozen=True)
class Drawn:
    """A graph that was drawn.

    Attributes:
        verdict: None: it was not checked.
        files: what was written, the page first.
    """

    graph: "Graph"
    verdict: Verdict | None
    files: list[Path]


def draw(asked: Asked) -> Drawn | None:
    """Trace a graph, check it and write its files; None: another rank does the writing.

    Rows are shared by the ranks of torchrun or a Slurm step, and those of a trace that was stopped are used.

    Raises:
        ConfigError: an argument is not valid, or does not fit the set, the model or a file; or the folder has
            a graph already.
    """
    folder = asked.folder
    texts = None if asked.paraphrases is None else read_lines(asked.paraphrases)
    if folder.is_file():
        raise ConfigError(f"--out {folder} is a file; give a folder")
    if (folder / PAGE).is_file() and not asked.force:
        raise ConfigError(f"{folder} has a graph already; give --force to write over it, or --out FOLDER")
    from sae_dist.interpret.model import model
    from sae_dist.interpret.sets import load_set

    with together(asked.device) as ranks:
        own = load_set(asked.where, device=ranks.device)
        other = None if asked.other is None else load_set(asked.other, device=ranks.device)
        lm = model(
            own[0],
            asked.model,
            device=ranks.device,
            dtype=torch.float32,
            trust_remote_code=asked.trust_remote_code,
        )
        if other is not None:
            check_places(sites_of(own, lm, force=True), sites_of(other, lm, force=True), asked.other or "")
        began = time.monotonic()
        graph = trace(
            own,
            lm,
            asked.prompt,
            targets=asked.targets or None,
            folder=folder,
            set_name=asked.where,
            axis=ranks.axis,
            force=asked.model is not None,
            **asked.settings,
        )
        if not ranks.leads:
            return None
        (folder / PAGE).unlink(missing_ok=True)  # of an earlier graph
        print_line(f"sae-dist graph: traced in {time.monotonic() - began:.1f} s")
        verdict = None
        if asked.checked:
            began = time.monotonic()
            verdict = check(
                graph,
                own,
                lm,
                nodes=asked.checked,
                paths=asked.paths,
                against=asked.against,
                paraphrases=texts,
                other=other,
                other_name=asked.other or "",
                seed=asked.seed,
            )
            print_line(f"sae-dist graph: checked in {time.monotonic() - began:.1f} s")
        return Drawn(graph, verdict, write(folder, graph, own, lm, verdict))


def write(folder: Path, graph: "Graph", dictionaries: Any, lm: Any, verdict: Verdict | None) -> list[Path]:
    """Write the page, Neuronpedia's file and the verdict beside a graph; its rows are removed.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    from sae_dist.graph.formats.neuronpedia import write_neuronpedia
    from sae_dist.graph.known import known_of
    from sae_dist.graph.page.page import write_page

    known = known_of(graph, dictionaries, lm)
    said = () if verdict is None else verdict.lines
    write_neuronpedia(folder / NEURONPEDIA, graph, known, description=said)
    found = [folder / PAGE, folder / NEURONPEDIA, folder / JSON]
    (folder / VERDICT).unlink(missing_ok=True)  # of an earlier graph
    if verdict is not None:
        write_json(folder / VERDICT, verdict.to_json())
        found.append(folder / VERDICT)
    # The page is last: a folder without it is unfinished.
    write_page(folder / PAGE, graph, verdict, known)
    shutil.rmtree(folder / ROWS, ignore_errors=True)
    return found


def read_lines(path: Path) -> list[str]:
    """Return the lines of a file that are not empty.

    Raises:
        ConfigError: it cannot be read, or all are empty.
    """
    with reading(f"--paraphrases {path}", "cannot be read ({reason}); give a text file, one prompt a line"):
        text = read_bounded(path, pipes=True).decode("utf-8-sig")
    found = [line for line in text.splitlines() if line.strip()]
    if not found:
        raise ConfigError(f"--paraphrases {path} is empty; write one prompt a line")
    return found
