"""The place where a dictionary was found, and what is known there of its model and its latents."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_dist.atlas.read.labels import REVIEWS, Labels
from sae_dist.config.run import Single
from sae_dist.core.run_folder import ATLAS
from sae_dist.export.saelens import FIRING, WEIGHTS, load_firing_rates
from sae_dist.export.statistics import CodeStatistics, load_statistics

REJECTED = "rejected"
"""The state of a label that a person found wrong."""


@dataclass
class Place:
    """The origin of a dictionary.

    Attributes:
        folder: of the files with the weights.
        run: the config of the run that trained or imported it; None: only files are there.
        said: what the files say of model, hook and context, under SAELens' names.
        own_code: the run had leave to run code that the model brings along.
        measured: statistics of its latents that were measured since it was opened.
    """

    folder: Path
    run: Single | None = None
    said: dict[str, Any] = field(default_factory=dict)
    own_code: bool = False
    measured: CodeStatistics | None = None

    @property
    def hook(self) -> str | None:
        """The hook, as the run resolved it or as the files name it."""
        if self.run is not None:
            return self.run.hook
        return self.said.get("hf_hook_name") or self.said.get("hook_name")

    @property
    def target_hook(self) -> str | None:
        """The hook of a transcoder's target."""
        if self.run is not None:
            return self.run.target_hook
        return self.said.get("hf_hook_name_out") or self.said.get("hook_name_out")

    @property
    def model_name(self) -> str | None:
        """The model that the dictionary was trained on, as the run or the files name it."""
        return self.run.llm.name if self.run is not None else self.said.get("model_name")

    @property
    def context(self) -> int | None:
        """The number of tokens of a sequence in training."""
        return self.run.tokens.context if self.run is not None else self.said.get("context_size")

    def statistics(self, num_latents: int) -> CodeStatistics | None:
        """Return what was measured of each latent's codes; None: nothing was.

        Raises:
            ConfigError: the file is damaged, or of another dictionary.
        """
        return self.measured or load_statistics(self.folder, num_latents)

    def rate(self, num_latents: int) -> Tensor | None:
        """Return the share of tokens on which each latent fires [F]; None: it was never measured.

        Raises:
            ConfigError: a file is damaged, or of another dictionary.
        """
        if self.measured is not None:
            return self.measured.rate_F
        path = self.folder / FIRING
        if not path.is_file() or not (self.folder / WEIGHTS).is_file():
            return None
        if path.stat().st_mtime < (self.folder / WEIGHTS).stat().st_mtime:
            return None  # of an earlier export
        rate_F = load_firing_rates(self.folder)
        return rate_F if rate_F is not None and rate_F.shape == torch.Size([num_latents]) else None

    def labels(self, num_latents: int) -> dict[int, str]:
        """Return the words that latents have beside the atlas of the run, but for rejected ones.

        Raises:
            ConfigError: their file is damaged, or of another dictionary.
        """
        path = self.folder.parent / ATLAS / REVIEWS
        if self.run is None or not path.is_file():
            return {}
        found = Labels(path, num_latents).all()
        return {each.latent: each.text for each in found if each.state != REJECTED}
