"""Run folders that are their owner's alone, whatever the umask says."""

import os

import pytest

from sae_dist.core.owner import owning
from sae_dist.launch.freeze import freeze
from tests.unit.config.test_config_rules import resolved


@pytest.fixture(autouse=True)
def umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("private", "of_folder", "of_files"), [(True, 0o700, 0o600), (False, 0o755, 0o644)])
def test_a_run_folder(tmp_path, private, of_folder, of_files):
    words = (f"output={tmp_path}", "name=run", f"private={str(private).lower()}")
    folder = freeze(resolved(*words), 96).folder
    assert folder.stat().st_mode & 0o777 == of_folder
    assert modes(folder) == {of_files}


def test_what_is_added_later(tmp_path):
    frozen = freeze(resolved(f"output={tmp_path}", "name=run", "private=true"), 96)
    frozen.release()
    with owning(frozen.folder, "evaluated"):
        (frozen.folder / "plots").mkdir()
        (frozen.folder / "plots" / "a.png").touch()
    (tmp_path / "elsewhere").touch()
    assert modes(frozen.folder) == {0o600} and (frozen.folder / "plots").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "elsewhere").stat().st_mode & 0o777 == 0o644


def test_a_run_that_goes_on(tmp_path):
    """It becomes private, and its config does not count as another one."""
    words = [f"output={tmp_path}", "name=run"]
    freeze(resolved(*words), 96).release()
    frozen = freeze(resolved(*words, "private=true", "resume=auto"), 96)
    assert frozen.folder.stat().st_mode & 0o777 == 0o700
