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
    if sys.argv[1] != "90" and build.plan.constants.get("D") in (768, 12288):
        continue  # between others, and much the same on every GPU
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
ENTRIES = ("bag", "window_sums", "dots", "segment_sums", "screen_filter", "product_filter", "update_rows")
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
    for each in without_product(programs):
        assert each["stack"] <= (32 if each["threads"] == 1024 else 8), each
    assert sum(each["stack"] > 0 for each in programs) <= len(programs) // 10


def test_shared_memory_and_registers_leave_room(programs):
    """A block fits onto a multiprocessor, and where rows are not the widest at least two of them do."""
    for each in without_product(programs):
        taken = each["registers"] * each["threads"]
        blocks = 1 if each["threads"] >= 512 else 2
        assert blocks * taken <= REGISTERS, each
        assert each["shared"] <= 16384, each
        assert each["threads"] % LANES == 0


def without_product(programs: list[dict]) -> list[dict]:
    """All but the product, whose tile of scores fills the registers."""
    return [each for each in programs if not each["build"].startswith("product_filter")]


def test_the_product_holds_its_scores_in_registers(programs):
    """A block fits onto a multiprocessor; with dead latents some words spill on the newest GPUs."""
    found = [each for each in programs if each["build"].startswith("product_filter")]
    assert len(found) == 4
    for each in found:
        assert each["stack"] <= (64 if "DEAD_CAPACITY" in each["build"] else 0), each
        assert each["registers"] * each["threads"] <= REGISTERS and each["shared"] <= 160 * 1024, each


def test_the_filter_is_short_and_loads_are_wide(programs):
    """It meets every score of a step: four in one load, and four of the bias; nothing waits for a warp."""
    found = [each for each in programs if each["build"].startswith("screen_filter")]
    assert len(found) == 6
    for each in found:
        dead = "DEAD_CAPACITY" in each["build"]
        assert each["threads"] == LANES
        assert each["loads"]["16"] == 2, each
        assert sum(each["loads"].values()) <= (7 if dead else 4), each
        assert each["instructions"] <= (500 if dead else 260), each
        assert each["registers"] <= 64, each


def test_rows_of_weights_are_loaded_16_bytes_at_a_time(programs):
    """In float32, where the width is a multiple of four."""
    for each in programs:
        name, dtype, *constants = each["build"].split()
        if (
            name in ("bag", "dots", "window_sums", "update_rows")
            and dtype == "fp32"
            and "D=33" not in constants
        ):
            assert each["loads"].get("16", 0) > 0, each


def test_no_size_is_specialised():
    """Whatever is neither a pointer nor a constant of the plan: another batch size builds no new program."""
    assert run_compiler(SPECIALISED).split() == []
