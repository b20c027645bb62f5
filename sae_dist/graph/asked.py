"""The request of the command `sae-dist graph`. It needs no torch: wrong input is answered before that."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_dist.core.run_folder import CONFIG

FOLDER = "graphs"
NODES, PATHS = 20, 10
LONGEST_NAME = 40


@dataclass(frozen=True)
class Asked:
    """A request for a graph.

    Attributes:
        where: the set of transcoders.
        targets: texts of one token, or ids; empty: the most likely tokens.
        against: effects are of the first target minus the second.
        checked: how many nodes are cut in the real model; 0: no check.
        paraphrases: a file with other prompts, one a line.
        other: another set of transcoders for the same places.
        settings: arguments of `trace`.
    """

    where: str
    prompt: str
    targets: tuple[str | int, ...] = ()
    against: bool = False
    checked: int = NODES
    paths: int = PATHS
    paraphrases: Path | None = None
    other: str | None = None
    out: Path | None = None
    model: str | None = None
    device: str = "cpu"
    seed: int = 0
    force: bool = False
    trust_remote_code: bool = False
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The folder to write: with the set's run if that is one, by the prompt's beginning."""
        if self.out is not None:
            return self.out
        where = Path(self.where).expanduser()
        base = where / FOLDER if (where / CONFIG).is_file() else Path(FOLDER)
        begin = re.sub(r"[^A-Za-z0-9]+", "-", self.prompt).strip("-")[:LONGEST_NAME].strip("-") or "prompt"
        whole = repr((self.prompt, self.targets, sorted(self.settings.items())))
        return base / f"{begin}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
