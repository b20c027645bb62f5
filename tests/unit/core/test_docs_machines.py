"""The README's table of machines is the library's own arithmetic."""

import re
from pathlib import Path

import pytest

from sae_dist.config.needs import USABLE, held_bytes
from sae_dist.config.resolve import resolve
from sae_dist.core.types import LlmFacts
from sae_dist.launch.compose import compose_config

README = (Path(__file__).parents[3] / "README.md").read_text()
ROW = re.compile(r"^\| (.+?) \| `sae-dist train ?(.*?)` \| (\S+) \| (\S+) \| (\S+) GiB \|$", re.M)
ROWS = ROW.findall(README)
GIB = 2**30


def figure(text: str) -> float:
    return float(text.rstrip("kM")) * {"k": 1e3, "M": 1e6}[text[-1]]


def held(words: list[str], latents: int, width: int) -> int:
    facts = LlmFacts("x", "x", "h.1:out", width, True, 1024, 100, (), ())
    cfg = resolve(compose_config([*words, f"sae.num_latents={latents}"]), facts, width)
    return held_bytes([cfg], width, width)


def test_the_table_has_machines_of_all_sizes():
    assert len(ROWS) == 6 and "topology.shard=32" in ROWS[-1][1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_largest_dictionaries_fit_and_slightly_larger_ones_do_not(row):
    machine, words, *largest, each = row
    room = USABLE * (16 if "laptop" in machine else 80) * GIB
    assert float(each) * GIB == pytest.approx(room)
    given = [word.replace("cuda", "cpu") for word in words.split()] + ["kernels=torch"]
    for text, width in zip(largest, (768, 2304), strict=True):
        latents = int(figure(text)) // 64 * 64
        # Two digits, rounded down.
        assert held(given, latents, width) <= room < held(given, int(latents * 1.1), width)
