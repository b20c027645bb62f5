"""The plugin that measures processor time, in a session of its own."""

from types import SimpleNamespace

from tests.helpers import processor_time

pytest_plugins = ["pytester"]

CONFTEST = """
from tests.helpers.processor_time import ProcessorTime

def pytest_configure(config):
    config.addinivalue_line("markers", "long: x")
    config.pluginmanager.register(ProcessorTime(limit_s=0.3))
"""
TESTS = """
import subprocess, sys, time
import pytest

BURN = "import time\\nwhile time.process_time() < 0.5: pass"

def burn():
    subprocess.run([sys.executable, "-c", BURN], check=True)

def test_cheap():
    pass

def test_waits():
    time.sleep(0.6)

def test_dear():
    burn()

@pytest.mark.long
def test_dear_and_long():
    burn()

@pytest.fixture(scope="module")
def prepared():
    burn()

def test_dear_to_prepare(prepared):
    pass
"""


def test_a_dear_test_fails_unless_it_is_long(pytester, monkeypatch):
    """What a process below it used counts, and so does a fixture; waiting does not."""
    monkeypatch.setattr(processor_time, "host_factor", lambda: 1.0)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_inprocess("-p", "no:xdist", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=3, failed=1, errors=1)
    result.stdout.fnmatch_lines(["*25 slowest tests*", "*test_dear*", "*all 5 tests"])
    result.stdout.fnmatch_lines(["*test_dear: call took * s of processor time*"])
    result.stdout.fnmatch_lines(["*test_dear_to_prepare: setup took * s of processor time*"])


def test_a_slow_host_is_given_more_time(monkeypatch):
    monkeypatch.setattr(processor_time, "SUM_S", processor_time.SUM_S / 100_000)
    assert processor_time.host_factor() > 20
    item = SimpleNamespace(nodeid="a")
    took = {
        seconds: SimpleNamespace(when="call", processor_s=seconds, outcome="passed") for seconds in (25, 999)
    }
    monkeypatch.setattr(processor_time, "host_factor", lambda: 2.0)
    for report in took.values():
        processor_time.ProcessorTime()._refuse(item, report)
    assert [report.outcome for report in took.values()] == ["passed", "failed"]
