"""A run of the embedded model with a random dictionary and a small atlas, and a client of its pages."""

from pathlib import Path

from starlette.testclient import TestClient

from sae_dist.atlas.read.atlas import Atlas
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, save_config
from sae_dist.export.saelens import export_saelens
from sae_dist.serve.app import Pages
from sae_dist.serve.guard import Door, Guard
from sae_dist.serve.room import Room
from tests.helpers.described import described
from tests.helpers.dictionaries import random_sae

LATENTS, HOOK = 64, "layers.1:out"
HOME = "http://127.0.0.1:8000"
OWN = {"Origin": HOME}
"""What a browser says of a form of the server's own pages."""


class Evil:
    """Gives tokens a text that means harm; stands in for a tokenizer."""

    tokenizer = object()
    texts = {3: "<script>alert(1)</script>", 4: "\u202egnp.exe\x1b[31m", 5: '" onload="x', 6: "{{ 7*7 }}"}

    def __len__(self):
        return 1000

    def token(self, number):
        return self.texts.get(number, f" t{number}")

    def pieces(self, ids):
        return [self.token(each) for each in ids]

    def ids(self, text):
        return [key for key in range(1000) if self.token(key) == text] or [1, 2]


def saved_run(folder: Path, latents=LATENTS) -> Path:
    """Save a run's config and export."""
    cfg = RunConfig(device="cpu", kernels="torch", name="a-run")
    cfg.sae.kind, cfg.sae.num_latents, cfg.sae.k, cfg.optim.kind = "topk", latents, 8, "adam"
    cfg.llm.name, cfg.llm.dtype, cfg.tokens.kind, cfg.activations.kind = "embedded", "float32", "text", "llm"
    cfg.hook = HOOK
    sae = random_sae("topk", F=latents, D=256, k=8)
    sae.metadata.update({"hook_name": HOOK, "model_name": "embedded"})
    export_saelens(folder / "export", sae)
    save_config(resolve(cfg, None, 64), folder / "config.yaml")
    return folder


def atlas_run(folder: Path, latents=LATENTS, **how) -> Path:
    """Save such a run with an atlas."""
    described(saved_run(folder, latents) / "atlas", latents, **how)
    return folder


def evil_atlas(folder: Path) -> Atlas:
    """An atlas whose tokens mean harm, without a run."""
    atlas = Atlas.open(described(folder / "atlas", 600), Evil())
    atlas.words.ids = Evil().ids
    return atlas


def client(atlas: Atlas, room: Room | None = None, door: Door | None = None, author="") -> TestClient:
    """A browser that follows no redirect by itself."""
    room = room or Room("nowhere", closed="no model in this test")
    pages = Pages(atlas, room, author)
    guard = Guard(pages.routed(), door or Door.at("127.0.0.1", 8000))
    return TestClient(guard, base_url=HOME, follow_redirects=False)
