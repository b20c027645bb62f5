"""One of the first steps on a GPU, in a process of its own: prints what it found, and writes it as JSON.

python -m sae_dist.bench.first.run STEP [--device cuda|cpu] [--small] [--out FOLDER]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from sae_dist.bench.first import hold, right, speed
from sae_dist.bench.first.fused import fused
from sae_dist.bench.first.predictions import beside
from sae_dist.bench.first.right import Found
from sae_dist.core.errors import SaeDistError
from sae_dist.core.files import write_json
from sae_dist.core.place import place
from sae_dist.distributed import runtime

STEPS: dict[str, Callable[[torch.device, bool], Found]] = {
    "env": right.env,
    "kernels": right.kernels,
    "waits": right.waits,
    "group": right.group,
    "step": speed.step,
    "redone": speed.redone,
    "fused": fused,
    "blocks": speed.blocks,
    "profile": speed.profile,
    "last_row": hold.last_row,
    "wide": hold.wide,
    "widest": hold.widest,
    "resumed": hold.resumed,
}

TIMEOUT_S = 600.0


def main() -> int:
    """Run the step that is named; return 0, or 1 where what it found is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU")
    parser.add_argument("--out", type=Path, default=Path("."), help="gets STEP.json")
    asked = parser.parse_args()
    began = time.monotonic()
    result: dict[str, object] = {"step": asked.step, "device": asked.device, "small": asked.small}
    try:
        found = in_a_world_of_one(STEPS[asked.step], asked.device, asked.small)
        result |= {"found": found} | ({} if asked.small else {"expected": beside(asked.step, found)})
    except (SaeDistError, torch.cuda.OutOfMemoryError) as error:
        result["wrong"] = " ".join(str(error).split())
    result["seconds"] = time.monotonic() - began
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / f"{asked.step}.json", result)
    print(json.dumps(result, indent=1))
    if "wrong" in result:
        print(f"wrong: {result['wrong']}", flush=True)
        return 1
    print(short(result["found"], result.get("expected", {})), flush=True)  # type: ignore[arg-type]
    return 0


def in_a_world_of_one(act: Callable[[torch.device, bool], Found], device: str, small: bool) -> Found:
    """Run a step in the process group that a run of one rank has; `right.group` makes its own."""
    if act is right.group:
        return act(torch.device(device), small)
    where = runtime.start(place(), device, TIMEOUT_S)
    try:
        return act(where, small)
    finally:
        runtime.finish()


def short(found: Found, expected: dict[str, str]) -> str:
    """Return one line: what was expected first, then the rest, as far as it fits."""
    names = [*expected, *(name for name in found if name not in expected)]
    parts = []
    for name in names:
        value = found[name]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(f"{name} {shown}" + (f" ({expected[name]})" if name in expected else ""))
    return ", ".join(parts)[:400]


if __name__ == "__main__":
    sys.exit(main())
