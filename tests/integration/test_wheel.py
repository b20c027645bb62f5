"""The wheel: one package, with its data inside, that works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
DATA = (
    "conf/train.yaml",
    "conf/llm/embedded.yaml",
    "slurm/README.md",
    "slurm/train.sbatch",
    "llm/embedded/model.safetensors",
    "evaluation/report/base.html",
    "evaluation/report/macros.html",
    "evaluation/report/many.html",
    "evaluation/report/page.html",
    "evaluation/report/page.css",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the wheel installed in it, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    offline = ["--no-deps", "--no-index"]
    build = [*pip, "wheel", *offline, "--no-build-isolation", "-w", str(folder / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = (folder / "dist").glob("sae_dist-*.whl")
    install = [*pip, "install", *offline, "--target", str(folder / "site"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    with zipfile.ZipFile(wheel) as opened:
        (folder / "names").write_text("\n".join(opened.namelist()))
    return folder / "site"


def test_site_packages_gains_one_package(site):
    tops = {line.split("/")[0] for line in (site.parent / "names").read_text().splitlines()}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"sae_dist"} and len(tops) == 2


def test_every_module_and_the_data_are_inside(site):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sae_dist").rglob("*.py")}
    conf = {f"sae_dist/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "conf").rglob("*.yaml")}
    names = set((site.parent / "names").read_text().splitlines())
    assert modules | {each for each in conf if "/local/" not in each} <= names
    assert all(f"sae_dist/{each}" in names for each in DATA)


def test_the_command_works_from_there(site, tmp_path):
    command = [sys.executable, "-c", "from sae_dist import cli; raise SystemExit(cli.main())"]
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}

    def sae_dist(*words):
        return subprocess.run(
            [*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    composed = sae_dist("train", "--cfg", "job", "debug=tiny")
    assert composed.returncode == 0 and "train_tokens: 16384" in composed.stdout, composed.stderr
    where = subprocess.run(
        [sys.executable, "-c", "import sae_dist; print(sae_dist.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(site)
    trained = sae_dist("train", "debug=tiny", "eval.tokens=0", "name=run")
    assert trained.returncode == 0, trained.stderr
    assert (tmp_path / "outputs" / "run" / "export" / "cfg.json").is_file()
