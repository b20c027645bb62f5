"""`sae-dist eval` on run folders whose dictionary and right numbers are known."""

import json

import pytest
import torch

from sae_dist import cli
from sae_dist.config.resolve import resolve
from sae_dist.config.run import save_config
from sae_dist.evaluation.summary import evaluate_run
from tests.unit.evaluation.test_evaluation_run import config, perfect, run_folder

WANTED = (
    "fvu fvu_quantiles fvu_without_high_norm fvu_second_corpus explained_variance l0 dead_fraction "
    "dense_fraction_1 dense_fraction_10 l2_ratio relative_bias ce_recovered kl density redundancy probes "
    "absorption controls"
).split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A perfect dictionary at the middle layer of the embedded LM."""
    cfg = config()
    cfg.tokens.context, cfg.hook = 256, "layers.1:out"
    cfg.eval.tokens, cfg.eval.ce_tokens = 2048, 1024
    return run_folder(tmp_path_factory.mktemp("eval") / "a=run", cfg, perfect(256))


def test_a_short_evaluation_says_how_to_ask_for_the_rest(run, capsys):
    assert cli.main(["eval", str(run), "eval.tokens=1024", "eval.ce_tokens=512"]) == 0
    table = capsys.readouterr().out
    found = json.loads((run / "eval.json").read_text())
    assert set(WANTED) <= set(found)
    for key, value in found.items():
        assert value is not None or found[f"{key}_reason"], key
    assert found["eval_tokens"] == 1024 and found["fvu"] < 1e-6 and found["kl"] == pytest.approx(0, abs=1e-5)
    assert found["kl_mean_ablated"] > 1 and found["ce_recovered"] == pytest.approx(1, abs=1e-3)
    assert found["redundancy"]["above_0.7"] == 0 and found["probes"] is None
    assert "KL from the clean next token" in table and "controls: not measured (not asked for" in table
    said = "dead latents: not measured (1,024 held-out tokens; 500,000 are needed); silent on these: "
    assert said in table
    assert (run / "plots" / "eval_redundancy.png").exists()
    # What was asked for here is no part of the run.
    assert json.loads((run / "summary.json").read_text())["eval_tokens"] == 1024
    assert "tokens: 2048" in (run / "config.yaml").read_text()


@pytest.mark.long
def test_in_full(run, tmp_path, capsys):
    corpus = tmp_path / "other"
    corpus.mkdir()
    for number in range(80):
        (corpus / f"{number}.txt").write_text(f"Text {number} says little, and nothing of Python. " * 60)
    words = [f"eval.corpus={corpus}", "eval.tokens=12k", "eval.ce_tokens=0", "eval.baselines=false"]
    assert cli.main(["eval", str(run), "--full", *words]) == 0
    found = json.loads((run / "eval.json").read_text())
    assert found["fvu_second_corpus"] < 1e-6 and found["second_corpus"]["path"] == str(corpus)
    tasks = found["probes"]["tasks"]
    assert set(tasks) >= {"comment", "string", "keyword", "number"}
    assert tasks["keyword"]["raw"]["auc"] > 0.95 > 0.5 < tasks["keyword"]["k=16"]["auc"]
    assert found["probes"]["mean"]["k=16"] >= found["probes"]["mean"]["k=1"]
    assert found["absorption"] is None and "best F1" in found["absorption_reason"], "it cannot spell"
    # A perfect dictionary is perfect everywhere: these controls are about those that are not.
    assert found["controls"]["random_llm"]["fvu"] < 1e-6
    assert found["ce_recovered"] is None and "eval.ce_tokens=0" in found["ce_recovered_reason"]
    assert {"eval_probes.png", "eval_controls.png"} <= {each.name for each in (run / "plots").iterdir()}
    assert "AUC on python" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{run}", "eval.corpus={run}/nowhere"], "eval.corpus={run}/nowhere does not exist"),
        (["{run}", "eval.probes={run}/nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["{run}", "eval.probes={run}/config.yaml"], "line 1 is not an object"),
        (["{run}", "sae.k=3"], "only eval.tokens"),
        (["{run}", "eval.every=3"], "only eval.tokens"),
        (["{run}", "eval.absorption=perhaps"], "wrong type"),
        (["{run}", "eval.tokens=many"], "eval.tokens"),
        (["{run}", "eval.tokens=0"], "nothing"),
        (["{run}", "--fast"], "no option --fast"),
        (["{run}/nowhere"], "no config.yaml"),
        (["{run}/plots"], "no config.yaml"),
    ],
)
def test_wrong_words_are_answered_in_a_line(words, says, run, capsys):
    before = (run / "summary.json").read_bytes()
    assert cli.main(["eval", *(word.format(run=run) for word in words)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and says.format(run=run) in err, err
    assert (run / "summary.json").read_bytes() == before


def test_a_run_that_was_not_exported_is_told_how(tmp_path, capsys):
    save_config(resolve(config(), None, 8), tmp_path / "config.yaml")
    assert cli.main(["eval", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"with sae-dist export {tmp_path}, or finish" in err, err


def test_an_llm_with_random_weights_is_the_same_every_time_and_layer_by_layer():
    import dataclasses

    from sae_dist.llm.facts import llm_facts
    from sae_dist.llm.frozen import FrozenLlm
    from sae_dist.tokens.source import held_out_tokens

    cfg = config()
    facts, _ = llm_facts(cfg.llm, "layers.1")
    chunk = next(held_out_tokens(cfg.tokens, facts, seed=cfg.seed, rows=64).open(0, None))
    how = {"device": torch.device("cpu"), "dtype": torch.float32}
    state = torch.get_rng_state()
    control = dataclasses.replace(cfg.llm, random_init=True)
    cut, again = (FrozenLlm.load(control, facts, with_head=False, **how).activations(chunk) for _ in range(2))
    whole = FrozenLlm.load(control, facts, with_head=True, **how).activations(chunk)
    real = FrozenLlm.load(cfg.llm, facts, with_head=False, **how).activations(chunk)
    assert torch.equal(cut, again) and torch.equal(cut, whole)
    assert not torch.allclose(cut, real, rtol=0.5) and torch.equal(state, torch.get_rng_state())


def test_a_run_on_synthetic_activations_has_controls_and_no_probes(tmp_path):
    cfg = config()
    cfg.activations.kind = "synthetic"
    cfg.activations.num_features, cfg.activations.width, cfg.activations.mean_active = 16, 8, 2.0
    cfg.activations.zipf, cfg.activations.magnitudes, cfg.activations.noise = 0.0, "constant", 0.0
    cfg.activations.groups = "independent"
    folder = run_folder(tmp_path, cfg, perfect(8))
    evaluate_run(folder)
    assert cli.main(["eval", str(folder), "--full"]) == 0
    found = json.loads((folder / "eval.json").read_text())
    assert found["probes"] is None and "there is no LLM" in found["probes_reason"]
    assert found["controls"]["random_llm"] is None and found["controls"]["real"]["fvu"] < 1e-6
