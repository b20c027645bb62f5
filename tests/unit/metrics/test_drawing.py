"""Figures are drawn as matplotlib draws them, whatever the working folder says."""

import subprocess
import sys

PROGRAM = """
import pathlib
from sae_dist.metrics.plots import plot_curves
pathlib.Path("metrics.jsonl").write_text('{"step": 1, "tokens": 2, "loss/fvu": 0.5}\\n' * 2)
print(plot_curves(pathlib.Path(".")))
"""


def test_a_file_of_the_working_folder_has_no_program_run(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\ntext.latex.preamble: \\input{private}\n")
    program = tmp_path / "bin" / "latex"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={"PATH": f"{program.parent}:/usr/bin:/bin", "MPLCONFIGDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "loss_fvu.png" in done.stdout and not (tmp_path / "ran").exists()
