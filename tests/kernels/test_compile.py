"""Every Triton program in every tuned configuration compiles to machine code, and takes what it may take.

No GPU is needed. In processes of their own: here Triton interprets.
"""

import json
import os
import subprocess
import sys

import pytest

CAPABILITIES = (80, 90, 100)
SCRIPT = """
import dataclasses, json, sys
from sae_dist.kernels.triton_cubins import builds, compiled

for build in builds():
    found = dataclasses.asdict(compiled(build, int(sys.argv[1])))
    print(json.dumps(found | {"build": str(build), "plan": found["build"]["plan"]}), flush=True)
"""
SPECIALISED = """
from sae_dist.kernels.triton_cubins import builds

for build in builds():
    for parameter in build.function.params:
        if build.type_of(parameter.name) == "i32" and not parameter.do_not_specialize:
            print(build.program, parameter.name)
"""
ENTRIES = ("bag", "window_sums", "dots", "segment_sums", "screen_filter", "update_rows")
REGISTERS, LANES = 65536, 32
"""Of a multiprocessor of any of these GPUs, in 32-bit words; threads that get registers together."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif("not __import__('importlib.util').util.find_spec('triton')", reason="no triton"),
]


def run_compiler(script: str, *words: str) -> str:
    """What a script prints in a process where Triton compiles."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], env=env, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module", params=CAPABILITIES)
def programs(request) -> list[dict]:
    """What every program takes on one kind of GPU."""
    found = [json.loads(line) for line in run_compiler(SCRIPT, str(request.param)).splitlines()]
    assert {each["build"].split()[0] for each in found} == set(ENTRIES)
    return found


def test_hardly_anything_spills(programs):
    """At most two words of a thread, as compilers differ; eight where 1024 threads hold the widest rows."""
    for each in programs:
        assert each["stack"] <= (32 if each["threads"] == 1024 else 8), each
    assert sum(each["stack"] > 0 for each in programs) <= len(programs) // 10


def test_shared_memory_and_registers_leave_room(programs):
    """A block fits onto a multiprocessor, and where rows are not the widest at least two of them do."""
    for each in programs:
        taken = each["registers"] * each["threads"]
        blocks = 1 if each["threads"] >= 512 else 2
        assert blocks * taken <= REGISTERS, each
        assert each["shared"] <= 16384, each
        assert each["threads"] % LANES == 0


def test_no_size_is_specialised():
    """Whatever is neither a pointer nor a constant of the plan: another batch size builds no new program."""
    assert run_compiler(SPECIALISED).split() == []
