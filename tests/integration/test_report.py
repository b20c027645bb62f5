"""`sae-dist report`: the page in a real browser, offline, and of every kind of run."""

import contextlib
import html.parser
import http.server
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from sae_dist.analysis.report.page import needs_export, report_run
from sae_dist.cli import main
from sae_dist.core.config import RunConfig, load_config, save_config
from sae_dist.export.exported import ExportedSae
from sae_dist.export.saelens import export_saelens
from tests.commands import TINY
from tests.warm import warm

PLANTED = "<script>document.title='taken'</script>"
NAME = "<img src=x onerror=alert(1)>&"
EVALUATION = {
    "kl": None,
    "kl_reason": "there is no head",
    "probes": [{"name": PLANTED, "accuracy": 0.912345}, {"name": "x" * 300, "accuracy": None}],
    "redundancy": {"histogram": list(range(100)), "a_long_key_" * 12: 1e-7},
}
SECTIONS = {"about", "warnings", "curves", "results", "density", "speed", "evaluation", "latents", "config"}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--virtual-time-budget=10000",
]
OWN = re.compile(r"(http://)?(?!fonts\.)[\w.-]+\.(google|googleapis|gvt1)\.com\b")
"""What the browser itself asks for, whatever it shows."""
needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs chromium (Debian's package of that name)")


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
        "train_tokens=15360",
        "eval.tokens=4000",
        "eval.ce_tokens=1000",
        "eval.baselines=false",
    ]
    done = warm(
        folder, "train", *words, "name=page", f"tokens.path={folder / 'text'}", "checkpoint.every=7680"
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


class Tags(html.parser.HTMLParser):
    """Elements of a page, and every address in it."""

    def __init__(self, text: str):
        super().__init__()
        self.names: set[str] = set()
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.in_style = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.in_style = tag == "style"
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.addresses.append(value)
            self.addresses += re.findall(r"url\(([^)]*)\)", value or "")

    def handle_data(self, data):
        if self.in_style:
            assert "<" not in data and "@import" not in data and "@font-face" not in data
            self.addresses += re.findall(r"url\(([^)]*)\)", data)

    def handle_endtag(self, tag):
        self.in_style = False


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
    assert f"{summary['fvu']:.4f}" in text and f"none: {summary['dead_reason']}" in text
    assert "no GPU was measured" in text and "not labelled" in text
    assert "W&amp;B was off" in text and "none: there is no head" in text and "0.9123" in text


def browse(*arguments: str) -> str:
    assert BROWSER is not None
    done = subprocess.run([BROWSER, *QUIET, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Proxy(http.server.BaseHTTPRequestHandler):
    """Notes what is asked for, and has nothing."""

    def do_GET(self):
        if not OWN.match(self.path):
            self.server.asked.append(self.path)
        self.send_error(404)

    do_CONNECT = do_HEAD = do_POST = do_GET

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def watched():
    """A proxy for the browser; gives its options and the list of what it asked for."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"--proxy-server=http://127.0.0.1:{server.server_port}"
        yield [address, "--proxy-bypass-list=<-loopback>"], server.asked
        server.shutdown()


MEASURE = """<script>onload = () => {
  const wide = [...document.querySelectorAll("body *")].filter(each =>
    !each.closest(".scroll, pre, svg") && each.getBoundingClientRect().right > innerWidth + 1);
  parent.postMessage({
    width: innerWidth,
    scroll: document.documentElement.scrollWidth,
    wide: wide.slice(0, 5).map(each => each.outerHTML.slice(0, 80)),
    title: document.title,
    sections: [...document.querySelectorAll("section")].map(each => each.id),
    latents: document.querySelectorAll("article.latent").length,
    contexts: document.querySelectorAll("article.latent .text mark.fires").length,
    scripts: document.querySelectorAll("script").length,
    ids: [...document.querySelectorAll("[id]")].map(each => each.id),
  }, "*")
}</script>"""
WRAPPER = """<!doctype html><body><script>
let seen = [];
onmessage = event => { seen.push(event.data); document.body.dataset.seen = JSON.stringify(seen); };
</script>"""


def measured(page: Path, folder: Path, widths: tuple[int, ...]) -> list[dict]:
    """What a script sees in the page, at each width."""
    policy = r'<meta http-equiv="Content-Security-Policy"[^>]*>'
    text, found = re.subn(policy, "", page.read_text())
    assert found == 1
    (folder / "measured.html").write_text(text.replace("</body>", MEASURE + "</body>"))
    frames = "".join(
        f'<iframe src="measured.html" style="width:{w}px;height:800px;border:0"></iframe>' for w in widths
    )
    (folder / "wrapper.html").write_text(WRAPPER + frames)
    dom = browse("--dump-dom", (folder / "wrapper.html").as_uri())
    seen = re.search(r'data-seen="([^"]*)"', dom)
    assert seen, dom[:2000]
    return json.loads(html.unescape(seen[1]))


@needs_browser
def test_a_browser_shows_all_of_it_and_nothing_is_wider_than_the_window(page, tmp_path):
    seen = measured(page, tmp_path, (390, 1280))
    assert sorted(each["width"] for each in seen) == [390, 1280]
    for each in seen:
        assert each["scroll"] <= each["width"] and each["wide"] == []
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
    brightness = []
    for number, option in enumerate(([], ["--blink-settings=preferredColorScheme=0"])):
        picture = tmp_path / f"{number}.png"
        browse(*option, f"--screenshot={picture}", "--window-size=1280,1600", page.as_uri())
        pixels = (matplotlib.image.imread(picture)[..., :3] * 255).astype(np.uint8)
        assert pixels.shape[:2] == (1600, 1280)
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 200
        brightness.append(pixels.mean())
    assert brightness[0] > 200 and brightness[1] < 80


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
    save_config(cfg, folder / "config.yaml")
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
    words = {"empty": "is not a run folder", "grid": "is a grid of 2", "bare": "has no checkpoint yet"}
    for name, word in words.items():
        assert main(["report", str(tmp_path / name)]) == 2
        err = capsys.readouterr().err
        assert word in err and err.count("\n") == 1
        assert not (tmp_path / name / "report.html").exists()
