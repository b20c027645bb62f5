"""A folder in which cases are tried: small models as people have them, texts, and the command itself."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from tests.helpers.architectures import save_small, short_texts
from tests.helpers.warm import warm

TINY = ["debug=tiny", "metrics.wandb=off"]
SHORT = [*TINY, "train_tokens=8k", "eval.tokens=2k", "eval.ce_tokens=1k", "eval.baselines=false"]


class Desk:
    """The folder, and what most cases need in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of `sae-dist`; a traceback is always wrong."""
        done = warm(self.folder, *words)
        assert "Traceback" not in done.stderr, done.stderr[-600:]
        return done

    def refused(self, *words: str) -> str:
        """Run a command that must be refused: exit code 2, one line, nothing trained. Return the line."""
        done = self(*words)
        lines = [line for line in done.stderr.splitlines() if line.startswith("sae-dist: error:")]
        assert done.returncode == 2 and len(lines) == 1, (done.returncode, done.stderr[-600:])
        return lines[0].removeprefix("sae-dist: error: ")

    def trained(self, name: str, *words: str) -> str:
        """Run a short training to its end; return what it said."""
        done = self("train", *SHORT, f"name={name}", *words)
        assert done.returncode == 0, done.stderr[-600:]
        return done.stderr

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the metrics of a run."""
        return [json.loads(line) for line in (self.run(name) / "metrics.jsonl").read_text().splitlines()]

    def summary(self, name: str) -> dict[str, Any]:
        """Return the summary of a run."""
        return json.loads((self.run(name) / "summary.json").read_text())

    def run(self, name: str) -> Path:
        """Return the folder of a run."""
        return self.folder / "outputs" / name

    def model(self, kind: str) -> str:
        """Save a small model of an architecture once; return its folder's name."""
        if not (self.folder / kind).exists():
            (self.folder / kind).mkdir()
            save_small(kind, self.folder / kind)
        return kind

    def texts(self, name: str = "texts", documents: int = 2000) -> Path:
        """Write short documents of text; return their folder."""
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            short_texts(folder, documents)
        return folder

    def array(self, name: str, rows: int = 20_000, width: int = 32) -> np.ndarray:
        """Save an array of activations in a plane of 8 directions, and a little noise; return it."""
        random = np.random.default_rng(0)
        values = random.normal(size=(rows, 8)) @ random.normal(size=(8, width))
        values = (values + 0.3 * random.normal(size=(rows, width))).astype(np.float32)
        np.save(self.folder / name, values)
        return values

    def without_head(self) -> str:
        """Save a base model alone, as fine-tuning and embedding models are."""
        folder = self.folder / "headless"
        if not folder.exists():
            model = transformers.AutoModel.from_pretrained(self.folder / self.model("llama"))
            model.save_pretrained(folder)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).write_bytes((self.folder / "llama" / name).read_bytes())
        return "headless"

    def edited(self, kind: str, name: str, edit: Any) -> str:
        """Save a model of an architecture whose weights `edit` changes; return its folder's name."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.folder / self.model(kind))
        with torch.no_grad():
            edit(model)
        model.save_pretrained(self.folder / name)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (self.folder / name / file).write_bytes((self.folder / kind / file).read_bytes())
        return name
