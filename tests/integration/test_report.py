"""`sae-dist report`: the page in a real browser, offline, and of every kind of run."""

import html
import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from sae_dist.cli import main
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, load_config, save_config
from sae_dist.evaluation.report.page import needs_export, report_run
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import export_saelens
from tests.helpers.browser import Tags, browse, is_light, measured, needs_browser, watched
from tests.helpers.commands import TINY
from tests.helpers.small_llm import SMALL, save_small_llm
from tests.helpers.warm import warm

PLANTED = "<script>document.title='taken'</script>"
NAME = "<img src=x onerror=alert(1)>&"
EVALUATION = {
    "kl": None,
    "kl_reason": "there is no head",
    "probes": [{"name": PLANTED, "accuracy": 0.912345}, {"name": "x" * 300, "accuracy": None}],
    "redundancy": {"histogram": list(range(100)), "a_long_key_" * 12: 1e-7},
}
SECTIONS = {"about", "warnings", "curves", "results", "density", "speed", "evaluation", "latents", "config"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run on text that tries to be HTML."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "text").mkdir()
    draw = np.random.default_rng(0)
    words = ["def", "return", "café", "😀", PLANTED, "x", "in", "import", "\n", "<b>", "&amp;", '"']
    for number in range(40):
        (folder / "text" / f"{number}.txt").write_text(" ".join(draw.choice(words, 1200)))
    words = [
        *TINY[:-1],
        *SMALL,
        "train_tokens=3840",
        "eval.tokens=4000",
        "eval.ce_tokens=1000",
        "eval.baselines=false",
    ]
    save_small_llm(folder)
    done = warm(
        folder, "train", *words, "name=page", f"tokens.path={folder / 'text'}", "checkpoint.every=1920"
    )
    assert done.returncode == 0, done.stderr
    run = folder / "outputs" / "page"
    cfg = load_config(run / "config.yaml")
    cfg.name = NAME
    save_config(cfg, run / "config.yaml")
    (run / "eval.json").write_text(json.dumps(EVALUATION))
    return run


@pytest.fixture(scope="module")
def page(trained) -> Path:
    done = warm(trained.parents[1], "report", "outputs/page")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "outputs/page/report.html"
    return trained / "report.html"


def test_nothing_that_was_read_becomes_part_of_the_page(page):
    text = page.read_text()
    tags = Tags(text)
    assert not tags.names & {"script", "img", "link", "iframe", "object", "embed", "form", "base"}
    assert not any(name.startswith("on") for name in tags.attributes)
    assert tags.addresses and all(each.startswith("#") for each in tags.addresses)
    shown = html.unescape(text.split('id="latents"')[1])
    assert "<script>" not in text and "&lt;img src=x" in text and "script" in shown and "café" in shown


def test_numbers_and_reasons_are_there(page, trained):
    text, summary = page.read_text(), json.loads((trained / "summary.json").read_text())
    assert f"{summary['fvu']:.4f}" in text and f"not measured ({summary['dead_reason']})" in text
    assert "no GPU was measured" in text and "not labelled" in text
    assert "W&amp;B was off" in text and "none: there is no head" in text and "0.9123" in text


@needs_browser
def test_a_browser_shows_all_of_it_and_nothing_is_wider_than_the_window(page, tmp_path):
    seen = measured(page, tmp_path, (390, 1280))
    assert sorted(each["width"] for each in seen) == [390, 1280]
    for each in seen:
        assert each["scroll"] <= each["width"] and each["wide"] == [] and each["out"] == 0
        assert set(each["sections"]) == SECTIONS and each["latents"] == 30
        assert each["contexts"] > 100 and each["scripts"] == 1
        assert each["title"] == f"{NAME} – sae_dist report"
        assert len(each["ids"]) == len(set(each["ids"]))


@needs_browser
def test_the_page_asks_for_nothing(page, tmp_path):
    with watched() as (options, asked):
        dom = browse(*options, "--dump-dom", page.as_uri())
        assert dom.count("<article") == 30 and asked == []
    (tmp_path / "asks.html").write_text('<img src="http://example.invalid/a.png">')
    with watched() as (options, asked):
        browse(*options, "--dump-dom", (tmp_path / "asks.html").as_uri())
        assert asked == ["http://example.invalid/a.png"]


@needs_browser
def test_it_can_be_seen_in_light_and_dark(page, tmp_path):
    assert is_light(page, tmp_path, 1280) == (True, False)


def test_a_run_that_is_not_done_is_shown_from_its_newest_checkpoint(trained, tmp_path, capsys):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    for name in ("summary.json", "report.html", "eval.json"):
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(max((run / "checkpoints").glob("step_*")))
    assert needs_export(run)
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text()
    assert "The run is unfinished (step 20)" in text and "dictionary of step 10" in text
    assert text.count("<article") == 30 and f"sae-dist eval {run}" in text


def made(folder: Path, sae: ExportedSae, **values) -> Path:
    """A run folder with an export, as it stands before the evaluation."""
    cfg = RunConfig(device="cpu", kernels="torch", name="made")
    cfg.sae.kind, cfg.sae.num_latents, cfg.optim.kind = sae.kind, sae.num_latents, "adam"
    cfg.llm.dtype, cfg.llm.name, cfg.tokens.kind, cfg.activations.kind = "float32", "embedded", "text", "llm"
    cfg.shuffle.chunk_rows, cfg.eval.tokens = 512, 2048
    for key, value in values.items():
        section, _, name = key.rpartition("__")
        setattr(getattr(cfg, section) if section else cfg, name, value)
    export_saelens(folder / "export", sae)
    save_config(resolve(cfg, None, sae.width), folder / "config.yaml")
    (folder / "summary.json").write_text('{"status": "trained"}')
    return folder


def dictionary(kind: str, width: int = 256, transcoder: bool = False) -> ExportedSae:
    draw = torch.Generator().manual_seed(0)
    W_FD = torch.nn.functional.normalize(torch.randn(64, width, generator=draw), dim=1)
    zeros_F = torch.zeros(64)
    own = {
        "topk": {"b_enc_F": zeros_F, "k": 4},
        "relu": {"b_enc_F": zeros_F - 1},
        "jumprelu": {"b_enc_F": zeros_F, "threshold_F": zeros_F + 1},
        "gated": {"b_gate_F": zeros_F - 1, "b_mag_F": zeros_F, "r_mag_F": zeros_F.clone()},
    }[kind]
    return ExportedSae(
        kind=kind, W_enc_FD=W_FD, W_dec_FE=W_FD, b_dec_E=torch.zeros(width), transcoder=transcoder, **own
    )


@pytest.mark.parametrize("kind", ["topk", "relu", "jumprelu", "gated"])
def test_every_form_of_dictionary(tmp_path, kind):
    text = report_run(made(tmp_path, dictionary(kind))).read_text()
    assert text.count("<article") == 30 and text.count('<mark class="fires"') > 60
    assert text.count("Promotes") == 30 and "evaluation was skipped" in text


def test_a_transcoder(tmp_path):
    sae = dictionary("relu", transcoder=True)
    text = report_run(
        made(tmp_path, sae, hook="layers.1.mlp:in", target_hook="layers.1.mlp:out", eval__tokens=1000)
    ).read_text()
    assert text.count("Promotes") == 30 and "layers.1.mlp:in to layers.1.mlp:out" in text


def test_activations_without_text_say_so(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(4096, 16)).astype(np.float32))
    values = {"activations__kind": "file", "activations__path": str(tmp_path / "a.npy")}
    text = report_run(made(tmp_path, dictionary("topk", 16), **values)).read_text()
    assert text.count("<article") == 30 and "activations come from a file: there is no text" in text
    assert "<span>row " in text and "<mark" not in text and "Promotes" not in text


def test_a_model_that_is_not_here_is_said(tmp_path):
    text = report_run(made(tmp_path, dictionary("topk"), llm__name=str(tmp_path / "gone"))).read_text()
    assert "cannot be read here" in text and "gone does not exist" in text and "<article" not in text


def test_synthetic_activations_bring_their_picture(tmp_path):
    values = {
        "kind": "synthetic",
        "num_features": 12,
        "width": 8,
        "mean_active": 2.0,
        "zipf": 0.0,
        "noise": 0.0,
    }
    values |= {"magnitudes": "constant", "groups": "independent"}
    run = made(
        tmp_path, dictionary("topk", 8), **{f"activations__{key}": each for key, each in values.items()}
    )
    (run / "plots").mkdir()
    matplotlib.image.imsave(run / "plots" / "recovery.png", np.zeros((4, 4, 3)))
    text = report_run(run).read_text()
    assert "data:image/png;base64," in text and "activations are synthetic" in text
    assert text.count("<article") == 30 and "<span>row " in text


def test_what_is_no_run_is_refused(tmp_path, trained, capsys):
    (tmp_path / "empty").mkdir()
    grid = tmp_path / "grid"
    shutil.copytree(trained, grid, ignore=shutil.ignore_patterns("checkpoints", "report.html"))
    cfg = load_config(grid / "config.yaml")
    cfg.grid.k = [8, 16]
    save_config(cfg, grid / "config.yaml")
    bare = made(tmp_path / "bare", dictionary("topk"))
    shutil.rmtree(bare / "export")
    words = {
        "empty": "is not a run folder, nor a grid's or a sweep's",
        "grid": "a grid of 2 dictionaries, whose folders are all gone",
        "bare": "has no checkpoint yet",
    }
    for name, word in words.items():
        assert main(["report", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert word in err and err.count("\n") == 1
        assert not (tmp_path / name / "report.html").exists()
