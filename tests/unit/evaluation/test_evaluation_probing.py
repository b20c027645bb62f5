"""Probes that have something to find, and labelled sets."""

import json

import numpy as np
import pytest
import torch

from sae_dist.core.errors import ConfigError
from sae_dist.evaluation.probes.absorption import absorption, few_of_each, letters_of
from sae_dist.evaluation.probes.labels import CLASSES, balanced, classes_of, read_labelled, text_tasks
from sae_dist.evaluation.probes.logistic import accuracy, auc, f1, fit
from sae_dist.evaluation.probes.probing import RowCodes, Task, by_difference, encode_rows, probe_tasks
from sae_dist.export.exported import ExportedSae
from sae_dist.kernels.reference import encode_topk


def identity(D: int) -> ExportedSae:
    """A latent for each dimension."""
    return ExportedSae(
        kind="relu",
        W_enc_FD=torch.eye(D),
        b_enc_F=torch.zeros(D),
        W_dec_FE=torch.eye(D),
        b_dec_E=torch.zeros(D),
    )


def test_auc_accuracy_and_f1_by_hand():
    score, label = torch.tensor([2.0, 1.0, 1.0, -1.0]), torch.tensor([True, True, False, False])
    assert auc(score, label) == pytest.approx(3.5 / 4)
    assert accuracy(score, label) == 0.75 and f1(score, label) == pytest.approx(4 / 5)
    assert f1(-torch.ones(4), label) == 0


def test_logistic_regression_is_the_closed_form_of_one_binary_input():
    """Without a penalty the odds are those counted: weight = log odds ratio."""
    x = torch.tensor([[0.0]] * 100 + [[1.0]] * 100)
    label = torch.tensor([True] * 20 + [False] * 80 + [True] * 70 + [False] * 30)
    probe = fit(x, label, 0.0)
    assert float(probe.weight_D) == pytest.approx(np.log((70 / 30) / (20 / 80)), rel=1e-4)


def planted(latent: int = 5, D: int = 12, count: int = 800) -> tuple[torch.Tensor, Task]:
    """Rows in which one dimension alone tells the label; others are larger, and tell nothing."""
    draw = torch.Generator().manual_seed(0)
    label = torch.rand(count, generator=draw) < 0.5
    x = 10 * torch.rand(count, D, generator=draw)
    x[:, latent] = label * (0.5 + torch.rand(count, generator=draw))
    order = torch.arange(count)
    return x, Task("planted", order, label, order % 4 != 0)


def test_a_planted_latent_is_found_first_and_is_enough():
    x, task = planted()
    found = probe_tasks(identity(12), encode_topk, x, [task], ks=(1, 5))["tasks"]["planted"]
    assert found["latents"][0] == 5
    for arm in ("raw", "k=1", "k=5"):
        assert found[arm]["auc"] > 0.999 and found[arm]["accuracy"] > 0.99, arm
    assert found["majority"] < 0.56 and (found["train"], found["test"]) == (600, 200)


def test_labels_that_nothing_tells_stay_at_chance():
    x, task = planted()
    x[:, 5] = x[:, 4]
    found = probe_tasks(identity(12), encode_topk, x, [task])
    assert 0.35 < found["mean"]["k=1"] < 0.65 and 0.35 < found["mean"]["raw"] < 0.65
    assert "k=16" not in found["mean"], "there are 12 latents"


def test_a_question_with_too_few_rows_says_so():
    x, task = planted(count=30)
    assert "fewer than" in probe_tasks(identity(12), encode_topk, x, [task])["tasks"]["planted"]["reason"]


def test_differences_are_in_units_of_the_latent():
    """A latent that fires in one class alone comes before one that fires always, and twice as much there."""
    x = torch.tensor([[0.01, 100.0], [0.01, 110.0], [0.0, 50.0], [0.0, 40.0]])
    codes = encode_rows(identity(2), encode_topk, x)
    assert by_difference(codes, torch.tensor([0, 1]), torch.tensor([2, 3])).tolist() == [0, 1]


def test_columns_and_sums_of_codes_are_the_dense_ones():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 12, generator=draw)
    codes, dense = encode_rows(identity(12), encode_topk, x), x.clamp(min=0).double()
    wanted = torch.tensor([4999, 7, 7, 0])
    assert torch.equal(codes.columns(torch.tensor([3, 1]), wanted), dense[wanted][:, [3, 1]])
    sums, counts = codes.sums(wanted)
    assert torch.allclose(sums, dense[wanted].sum(0)) and torch.equal(
        counts, (dense[wanted] > 0).double().sum(0)
    )


def absorbed_words(silent: bool) -> tuple[RowCodes, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A hundred words of each of two letters; latents 0 and 1 say the letter.

    Every tenth word of the first letter has a latent of its own, which carries the letter's direction too;
    `silent`: there latent 0 does not fire.
    """
    words = torch.arange(200).repeat_interleave(10)
    letter = (words >= 100).long()
    x = 0.05 * torch.randn(2000, 12, generator=torch.Generator().manual_seed(0))
    x[torch.arange(2000), letter] += 1
    W = torch.eye(12)
    W[2:, 0], W[range(2, 12), range(2, 12)] = 0.8, 0.6
    pairs = []
    for row, word in enumerate(words.tolist()):
        own = word < 100 and word % 10 == 0
        if own:
            x[row, 2 + word // 10] += 1
            pairs.append((row, 2 + word // 10, 1.25))
        if not own or not silent:
            pairs.append((row, int(letter[row]), 1.0))
    row, latent, value = (torch.tensor(each) for each in zip(*pairs, strict=True))
    return RowCodes(row, latent, value, 2000, 12), x, W, words, letter


def test_planted_absorption_is_counted():
    codes, x, W, words, letter = absorbed_words(silent=True)
    found = absorption(codes, x, W, words, letter)["absorption"]
    test = (letter == 0) & ((words * 2654435761 % 2**32) % 5 == 0)
    share = float(((words % 10 == 0) & test).sum() / test.sum())
    a, b = found["letters"]["a"], found["letters"]["b"]
    assert a["probe_f1"] > 0.99 and a["latents"] == b["latents"] == 1 and b["rate"] == 0
    assert 0 < share < 0.3 and a["rate"] == pytest.approx(share, abs=1e-6)
    assert found["rate"] == pytest.approx(a["rate"] / 2)


def test_no_absorption_where_the_latent_fires_too():
    codes, x, W, words, letter = absorbed_words(silent=False)
    assert absorption(codes, x, W, words, letter)["absorption"]["rate"] == 0


def test_letters_that_no_probe_finds_are_left_out():
    codes, x, W, words, letter = absorbed_words(silent=True)
    found = absorption(
        codes, torch.randn(x.shape, generator=torch.Generator().manual_seed(1)), W, words, letter
    )
    assert found["absorption"] is None and "no first letter" in found["absorption_reason"]


def test_words_and_their_letters():
    assert letters_of([" the", "Zebra", "a", "x1", "ab c", "", "née", "  do"]).tolist() == [
        19, 25, -1, -1, -1, -1, -1, -1,
    ]  # fmt: skip
    ids, letter = torch.tensor([3] * 20 + [4, 5]), torch.tensor([0] * 20 + [-1, 2])
    assert few_of_each(ids, letter).tolist() == [*range(8), 21]


def test_classes_of_a_source():
    source = 'def f(x):  # note\n    if x:\n        return "s" + 1\n'
    found = classes_of(source)

    def text(name: str) -> str:
        return "".join(c for c, yes in zip(source, found[:, CLASSES.index(name)], strict=True) if yes)

    assert text("comment") == "# note" and text("string") == '"s"' and text("number") == "1"
    assert text("keyword") == "defifreturn" and text("definition") == "f" and text("operator") == "():" + ":+"
    assert text("nested") == 'return "s" + 1'


def test_both_sides_are_equal_in_each_part():
    label = np.arange(1000) % 10 == 0
    train = np.arange(1000) < 800
    rows = balanced(label, train)
    for part in (train[rows], ~train[rows]):
        assert label[rows][part].sum() * 2 == part.sum() > 0


def test_texts_and_labels_of_a_file(tmp_path):
    file = tmp_path / "a.jsonl"
    entries = [{"text": f"word {n}", "label": n % 2} for n in range(200)]
    file.write_text("\n".join(json.dumps(each) for each in entries) + "\n\n")
    labelled = read_labelled(str(file))
    assert len(labelled) == 200 and labelled[3] == ("word 3", "1")
    passages, tasks = text_tasks(labelled, lambda text: np.arange(1 + int(text.split()[1]) % 7), room=5)
    assert len(passages) == 200 and max(len(each.ids) for each in passages) == 5
    assert [task.name for task in tasks] == ["1"] and all(
        each.places[0] == len(each.ids) - 1 for each in passages
    )
    assert 0.1 < 1 - float(tasks[0].train_N.double().mean()) < 0.4


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "does not exist"),
        ("no json\n", "line 1"),
        ('{"text": "a"}\n', '"label"'),
        ('{"text": "a", "label": [1]}\n', "line 1"),
        ('{"text": "a", "label": "x"}\n{"text": "b", "label": "x"}\n', "1 labels"),
    ],
)
def test_a_file_that_is_not_fit_is_named(tmp_path, content, says):
    file = tmp_path / "a.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=says) as found:
        read_labelled(str(file))
    assert "eval.probes=" in str(found.value) and "\n" not in str(found.value)
