"""Help and wrong input are answered before anything large is imported, which takes seconds."""

import json
import subprocess
import sys

import numpy as np
import pytest

LARGE = ("torch", "transformers", "datasets", "wandb", "matplotlib", "scipy")
SCRIPT = """
import sys
from sae_dist import cli
code = cli.main(sys.argv[2:])
print(code, *(name for name in sys.argv[1].split(",") if name in sys.modules))
"""
FORKED = """
import json, os, sys
import sae_dist.launch.compose
from sae_dist import cli
for number, line in enumerate(sys.argv[2:]):
    if not (child := os.fork()):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(os.open(f"said_{number}.txt", os.O_WRONLY | os.O_CREAT), 2)
        code = cli.main(line.split())
        found = [name for name in sys.argv[1].split(",") if name in sys.modules]
        with open(f"answer_{number}.json", "w") as file:
            json.dump([code, found], file)
        sys.stderr.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Many commands, each in a process forked from one that has imported what composes a configuration."""
WRONG = [
    "trian",
    "train sae.kk=3",
    "train sae.k=0",
    "train sae.k=8,16",
    "train topology.shard=7 sae.num_latents=4096",
    "train hook=layers.9",
    "train hook=blocks.9.hook_resid_post",
    "train hook=layers.1:sideways",
    "train grid.hook=[layers.1,layers.9]",
    "train tokens.context=100000",
    "train tokens.path=nowhere",
    "train tokens=webdataset tokens.path=nowhere.tar",
    "train tokens=hf tokens.dataset=./nowhere",
    "train llm.name=./nowhere",
    "train sae.start=nowhere",
    "train activations=file activations.path=nowhere.npy",
    "train activations=file activations.path=cube.npy",
    "train activations=file activations.path=nan.npy",
    "train activations=cache activations.path=nowhere",
    "train activations=synthetic activations.zipf=2",
    "train output=cube.npy",
    "train output=. name=foreign",
    "train -m hook=layers.0,layers.9",
    "harvest tokens.path=nowhere",
    "submit --dry-run cluster.nodes=3",
    "resume nowhere",
    "eval nowhere",
    "export nowhere",
    "import nowhere name=x",
    "report nowhere",
    "sweep-table nowhere",
    "dashboard",
    "bench step --k 0",
]


def imported(folder, line, names):
    """Run a command in an interpreter of its own; its exit code, and which of `names` it imported."""
    command = [sys.executable, "-c", SCRIPT, ",".join(names), *line.split()]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    code, *found = done.stdout.splitlines()[-1].split()
    return int(code), found, done.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    np.save(folder / "cube.npy", np.zeros((4, 4, 4), np.float32))
    np.save(folder / "nan.npy", np.full((64, 4), np.nan, np.float32))
    (folder / "foreign").mkdir()
    (folder / "foreign" / "notes.json").write_text(json.dumps({}))
    return folder


@pytest.mark.parametrize("line", ["--help", "--version", "trian", "resume --help"])
def test_help_needs_no_library(line, folder):
    assert imported(folder, line, (*LARGE, "numpy", "hydra"))[1] == []


@pytest.mark.parametrize("line", ["train --help", "train --help sae", "submit --help", "train --cfg job"])
def test_help_of_keys_needs_no_torch(line, folder):
    assert imported(folder, line, LARGE)[:2] == (0, [])


@pytest.fixture(scope="module")
def answers(folder):
    """Of each line of WRONG: its exit code, what it imported, what it said."""
    subprocess.run([sys.executable, "-c", FORKED, ",".join(LARGE), *WRONG], cwd=folder, check=True)
    answers = {}
    for number, line in enumerate(WRONG):
        code, found = json.loads((folder / f"answer_{number}.json").read_text())
        answers[line] = code, found, (folder / f"said_{number}.txt").read_text()
    return answers


@pytest.mark.parametrize("line", WRONG)
def test_wrong_input_needs_no_torch(line, answers):
    code, found, err = answers[line]
    assert (code, found) == (2, []) and err.startswith("sae-dist: error: ") and err.count("\n") == 1, err
