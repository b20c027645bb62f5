"""What people who export, import and evaluate ran into elsewhere; as cases_training.py."""

import json
import os
import shutil
from collections.abc import Callable

import numpy as np

from tests.helpers.cases_desk import SHORT, Desk
from tests.helpers.commands import answer, sae_dist
from tests.helpers.dictionaries import unlisted


def without_a_network(desk: Desk) -> str:
    """A Hub name without a network is answered in one line."""
    before = dict(os.environ)
    os.environ |= {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    os.environ.pop("HF_HUB_OFFLINE", None)
    try:
        done = sae_dist(desk.folder, "train", *SHORT, "llm.name=some/model", "name=hub")
        said = answer(done.stderr)
        assert done.returncode == 2 and said.count("\n") <= 2, done.stderr[-500:]
        return said.splitlines()[-1]
    finally:
        os.environ.clear()
        os.environ |= before


def trainer_class_of_dictionary_learning(desk: Desk) -> str:
    """An export in dictionary_learning's layout names that project's own trainer."""
    _exportable(desk)
    done = desk("export", "outputs/exported", "--format", "dictionary_learning")
    assert done.returncode == 0, done.stderr
    (config,) = desk.run("exported").rglob("dictionary_learning/**/config.json")
    found = json.loads(config.read_text())["trainer"]["trainer_class"]
    assert found == "AutoEncoderTopK" or found.endswith("Trainer") or "TopK" in found
    return found


def what_the_user_gives_at_import(desk: Desk) -> str:
    """Model and hook that are given at import are in what is exported later."""
    _exportable(desk)
    assert desk("export", "outputs/exported", "--format", "sparsify").returncode == 0
    (folder,) = {path.parent for path in desk.run("exported").rglob("sparsify/**/cfg.json")}
    words = [f"llm.name={desk.model('llama')}", "hook=layers.1", "name=imported"]
    done = desk("import", str(folder), *words)
    assert done.returncode == 0, done.stderr
    assert desk("export", "outputs/imported", "--format", "saelens").returncode == 0
    (config,) = desk.run("imported").rglob("export/cfg.json")
    text = config.read_text()
    assert "llama" in text and "layers.1" in text
    return "model and hook are in cfg.json"


def foreign_configs(desk: Desk) -> str:
    """Values of wrong types in a foreign config are named with their file."""
    _exportable(desk)
    folder = desk.folder / "foreign"
    unlisted(shutil.copytree(desk.run("exported") / "export", folder))
    found = json.loads((folder / "cfg.json").read_text())
    said = []
    for key, value in (("k", None), ("d_sae", "many"), ("metadata", 7)):
        (folder / "cfg.json").write_text(json.dumps(found | {key: value}))
        words = [f"llm.name={desk.model('llama')}", "hook=layers.1", f"name=foreign_{key}"]
        said.append(desk.refused("import", "foreign", *words))
    return said[1]


def on_another_model(desk: Desk) -> str:
    """A dictionary measured on rows that it was not trained on is cautioned."""
    _exportable(desk)
    words = [
        f"llm.name={desk.model('mistral')}",
        "hook=layers.1",
        f"tokens.path={desk.texts()}",
        "name=other",
    ]
    done = desk("import", str(desk.run("exported") / "export"), *words)
    assert done.returncode == 0, done.stderr
    done = desk("eval", "outputs/other", "eval.tokens=2k", "eval.ce_tokens=1k")
    line = next(line for line in (done.stdout + done.stderr).splitlines() if line.startswith("caution:"))
    return line


def a_repository_of_many_places(desk: Desk) -> str:
    """The root of a repository names the folders in it that hold a dictionary."""
    _exportable(desk)
    for place in ("layers.0", "layers.1"):
        shutil.copytree(desk.run("exported") / "export", desk.folder / "many" / place)
    said = desk.refused("import", "many", f"llm.name={desk.model('llama')}", "hook=layers.1", "name=root")
    assert "layers.0" in said and "layers.1" in said
    return said


def gemma_scope(desk: Desk) -> str:
    """Gemma Scope's files are read."""
    random = np.random.default_rng(0)
    folder = desk.folder / "layer_1" / "width_64" / "average_l0_8"
    folder.mkdir(parents=True)
    rows = random.normal(size=(64, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors = {"b_enc": np.zeros(64, np.float32), "b_dec": np.zeros(32, np.float32)}
    threshold = np.full(64, 0.5, np.float32)
    np.savez(folder / "params.npz", W_enc=rows.T, W_dec=rows, threshold=threshold, **vectors)
    words = [f"llm.name={desk.model('gemma3_text')}", "hook=layers.1", f"tokens.path={desk.texts()}"]
    done = desk("import", str(folder), *words, "name=scope")
    assert done.returncode == 0, done.stderr
    done = desk("eval", "outputs/scope", "eval.tokens=2k", "eval.ce_tokens=0")
    assert done.returncode == 0 and "FVU" in done.stdout, done.stderr
    return done.stdout.splitlines()[1]


def a_pointer_instead_of_weights(desk: Desk) -> str:
    """A Git LFS pointer is named as one."""
    _exportable(desk)
    folder = desk.folder / "pointer"
    shutil.copytree(desk.run("exported") / "export", folder)
    (folder / "sae_weights.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    said = desk.refused("import", "pointer", f"llm.name={desk.model('llama')}", "hook=layers.1", "name=lfs")
    assert "LFS" in said or "lfs" in said
    return said


def a_home_that_cannot_be_written(desk: Desk) -> str:
    """W&B's folders follow the run's folder."""
    before = os.environ.get("HOME", "")
    os.environ |= {"HOME": "/proc/nohome", "WANDB_MODE": "offline"}
    try:
        done = desk("train", *SHORT, "metrics.wandb=offline", "name=homeless")
    finally:
        os.environ["HOME"] = before
    assert done.returncode == 0 and list(desk.run("homeless").rglob("run-*.wandb")), done.stderr[-500:]
    return "trained, with W&B's files in the run's folder"


def _exportable(desk: Desk) -> None:
    if not desk.run("exported").exists():
        desk.trained("exported", f"llm.name={desk.model('llama')}", f"tokens.path={desk.texts()}")


CASES: list[Callable[[Desk], str]] = [
    without_a_network,
    trainer_class_of_dictionary_learning,
    what_the_user_gives_at_import,
    foreign_configs,
    on_another_model,
    a_repository_of_many_places,
    gemma_scope,
    a_pointer_instead_of_weights,
    a_home_that_cannot_be_written,
]
