"""Labels beside the atlas of a run are shown by explain, but for those that a person rejected."""

import pytest

import sae_dist as sd
from sae_dist.atlas.read.labels import Labels
from tests.helpers.untrained import untrained_run


@pytest.fixture(scope="module")
def run(folder):
    return untrained_run(folder, "labelled", latents=64, k=8)


def test_labels_of_the_atlas_are_shown_unless_rejected(run):
    (run / "atlas").mkdir()
    labels = Labels(run / "atlas" / "reviews.sqlite", 64)
    for latent in range(64):
        labels.set(latent, f"word {latent}", state="rejected" if latent % 2 else "confirmed")
    d = sd.load(run)
    found = d.explain(sd.model(d), "some words of a text").latents_seen
    said = dict(zip(found["latent"], found["label"], strict=True))
    assert said and {n % 2 for n in said} == {0, 1}
    assert said == {n: None if n % 2 else f"word {n}" for n in said}
    own = d.explain(sd.model(d), "some words of a text", labels={}).latents_seen
    assert set(own["label"]) == {None}
