"""Lines about work that takes a while: none about short work, then how far and how long."""

import sys
import threading

from sae_dist.core import progress
from sae_dist.core.progress import reported, waiting


def test_progress_is_said_every_ten_seconds_and_not_at_the_end(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(progress, "LINE_EVERY_S", 10.0)
    found = []
    for item in reported(iter([100] * 10), int, 1000, "things"):
        found.append(item)
        now[0] += 6.0
    assert found == [100] * 10
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "200 of 1,000 things, about 00:48 left" and len(lines) == 4


def test_a_wait_is_named_once_it_is_long(capsys, monkeypatch):
    with waiting("loading"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    said = threading.Event()
    monkeypatch.setattr(progress, "print_line", lambda line: (print(line, file=sys.stderr), said.set()))
    with waiting("loading"):
        assert said.wait(10)
    assert capsys.readouterr().err == "loading ...\n"
