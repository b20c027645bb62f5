"""`sae-dist explain`, on a run, an export and another library's files; wrong input gives one line."""

import io
import json
import subprocess
import sys

import pytest
import torch

import sae_dist as sd
from sae_dist.commands.main import main
from sae_dist.config.resolve import resolve
from sae_dist.config.run import RunConfig, save_config
from sae_dist.export.saelens import export_firing_rates, export_saelens
from sae_dist.export.sparsify import export_sparsify
from tests.helpers.dictionaries import random_sae
from tests.helpers.tiny_llms import CONTEXT, EMBEDDED, TinyLlms

TEXT = "The capital of France is Paris."


@pytest.fixture(scope="module")
def run(folder):
    """A run folder of the embedded model with a random dictionary, and its export in another format."""
    cfg = RunConfig(device="cpu", kernels="torch", name="a-run")
    cfg.sae.kind, cfg.sae.num_latents, cfg.sae.k, cfg.optim.kind = "topk", 64, 8, "adam"
    cfg.llm.name, cfg.llm.dtype, cfg.tokens.kind, cfg.activations.kind = "embedded", "float32", "text", "llm"
    cfg.hook, cfg.tokens.exclude_ids = "layers.1:out", [11]
    place = folder / "a-run"
    sae = random_sae("topk", F=64, D=256, k=8)
    sae.metadata.update({"hook_name": "layers.1:out", "model_name": "embedded"})
    export_saelens(place / "export", sae)
    export_firing_rates(place / "export", torch.full((64,), 1 / 8))
    export_sparsify(folder / "sparsify", sae)
    save_config(resolve(cfg, None, 64), place / "config.yaml")
    return place


def printed(capsys, *arguments):
    assert main(["explain", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_run_is_explained_as_in_python(run, capsys, tmp_path):
    page = tmp_path / "page.html"
    out = json.loads(printed(capsys, run, TEXT, "--json", "--html", page))
    d = sd.load(run)
    found = d.explain(sd.model(d), TEXT)
    assert out == json.loads(found.to_json())
    assert out["about"]["model"] == "embedded" and out["about"]["rates_rows"] == 8
    assert page.read_text() == found.to_html()
    excluded = [each["special"] for each in out["tokens"] if each["token_id"] == 11]
    assert all(excluded), "what the run excludes is no activation"


def test_words_for_a_terminal(run, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT + "\n"))
    out = printed(capsys, run / "export", "-", "--top=3")
    assert "<|bos|> (0) before the text" in out and "layers.1:out" in out
    table = out[out.index("latents fired") :].splitlines()
    assert len(table) == 5 and "|\\n|" in out


def test_bytes_that_are_no_text_are_read_as_in_training(run, capsys):
    assert "\ufffd" in printed(capsys, run, "a\udcff b")


def test_files_of_another_library(run, folder, capsys):
    place = [folder / "sparsify", "--format", "sparsify", "--model", EMBEDDED]
    out = json.loads(printed(capsys, place[0], TEXT, *place[1:], "--json"))
    own = json.loads(printed(capsys, run, TEXT, "--json"))
    assert out["about"]["rates_reason"] is not None
    latents = [[(each["position"], each["latent"]) for each in one["codes"]] for one in (out, own)]
    assert latents[0] == latents[1]
    codes = [[each["code"] for each in one["codes"]] for one in (out, own)]
    assert codes[0] == pytest.approx(codes[1], rel=1e-5)


def test_a_named_model_of_another_width_is_refused(run, capsys, tmp_path_factory):
    small = TinyLlms(tmp_path_factory)("llama")
    assert main(["explain", str(run), TEXT, "--model", small]) == 2
    assert "width 32, the dictionary is for 256" in capsys.readouterr().err


LONG = "a b c d e f g h " * 40 * CONTEXT


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one text in quotes"),
        (["RUN"], "one text in quotes"),
        (["RUN", "two", "texts"], "got 3"),
        (["RUN", ""], "empty"),
        (["RUN", "a", "--top", "0"], "--top 0"),
        (["RUN", "a", "--top", "many"], "--top many"),
        (["RUN", "a", "--top"], "a value must follow --top"),
        (["RUN", "a", "--colour"], "no option --colour"),
        (["RUN", "a", "--html", "/nowhere/page.html"], "a folder that exists"),
        (["RUN", "a", "--format", "zip"], "--format zip"),
        (["RUN", "<|bos|>"], "special tokens only"),
        (["RUN", LONG], "reads at most"),
        (["nowhere", "a"], "nowhere"),
        (["EMPTY", "a"], "sae-dist export"),
    ],
)
def test_wrong_input_gives_one_line(run, folder, capsys, arguments, said):
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    (empty / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    before = sorted(folder.rglob("*"))
    places = {"RUN": str(run), "EMPTY": str(empty)}
    assert main(["explain", *(places.get(each, each) for each in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and said in err
    assert sorted(folder.rglob("*")) == before, "nothing is written"


def test_arguments_are_checked_before_anything_heavy_is_loaded():
    script = (
        "import sys; from sae_dist.commands.main import main\n"
        "assert main(['explain', 'x', '']) == 2 and 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


@pytest.mark.long
def test_what_is_not_needed_is_not_loaded(run):
    script = (
        "import sys; from sae_dist.commands.main import main\n"
        f"assert main(['explain', {str(run)!r}, 'a text']) == 0\n"
        "heavy = {'datasets', 'hydra', 'wandb', 'deepspeed', 'pyarrow', 'matplotlib', 'scipy.stats'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"
