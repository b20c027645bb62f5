"""The Triton programs in every tuned configuration, compiled to machine code on any machine.

The interpreter also runs programs that do not compile: this is the check, without a GPU, that they do.
"""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sae_dist.kernels import triton_adam, triton_fused, triton_jit
from sae_dist.kernels.triton_plan import (
    Plan,
    bag_plan,
    dots_plan,
    fused_plan,
    screen_plan,
    sums_plan,
    update_plan,
    window_plan,
)
from sae_dist.kernels.triton_select import Room

CAPABILITIES = (80, 90, 100)
WIDTHS = (33, 768, 2304, 12288, 16384)
"""Widths as of GPT-2, up to the widest; and an odd one, whose loads cannot be wide."""
KS = (1, 64, 512)
ELEMENTS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float64: "fp64"}
INTEGERS = ("latent", "index", "key", "start", "middle", "touched", "dead_key")
NUMBERS = ("num_pairs", "segments", "rows", "first", "width", "sixteens")

HOMES = {"update_rows": triton_adam, "product_filter": triton_fused}
"""Where programs are that are not in `triton_jit`."""

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/ +(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)")
BYTES = {"U8": 1, "S8": 1, "U16": 2, "S16": 2, "64": 8, "128": 16}
"""What an instruction loads, by its last word; 4 bytes without one."""


@dataclass(frozen=True)
class Build:
    """A program with its constants, and the types of rows and of sums."""

    program: str
    plan: Plan
    rows: str = "fp32"
    sums: str = "fp32"

    def __str__(self) -> str:
        shown = {name: value for name, value in self.plan.constants.items() if value not in (False, -1)}
        return f"{self.program} {self.rows} " + " ".join(f"{name}={value}" for name, value in shown.items())

    @property
    def function(self) -> triton.JITFunction:
        """The program as a function that Triton compiles."""
        return getattr(HOMES.get(self.program, triton_jit), self.program)

    def source(self) -> ASTSource:
        """Return the source: pointers are aligned to 16 bytes, as by torch, and no size is specialised."""
        program = self.function
        signature = {name: self.type_of(name) for name in program.arg_names}
        pointers = [place for place, kind in enumerate(signature.values()) if kind.startswith("*")]
        attrs = {(place,): [["tt.divisibility", 16]] for place in pointers}
        return ASTSource(program, signature, self.plan.constants, attrs)

    def type_of(self, name: str) -> str:
        """Return the type of a parameter, derived from its name."""
        if name in self.plan.constants:
            return "constexpr"
        if name in NUMBERS:
            return "i32"
        stem = name.rsplit("_", 1)[0]
        if stem in INTEGERS:
            return "*i64"
        if stem in ("count", "dead_count"):
            return "*i32"
        if name == "dead_C":
            return "*i8"
        if name == "numbers_N":
            return "*fp64"
        return f"*{self.rows if stem in ('rows', 'x', 'W', 'grad') else self.sums}"


@dataclass(frozen=True)
class Resources:
    """The resources of a program, and its machine code in numbers.

    registers     per thread
    shared        bytes of shared memory
    stack         bytes of registers that were spilled
    instructions  of the whole program
    loads         instructions that load from memory, by bytes per thread
    """

    build: Build
    capability: int
    threads: int
    registers: int
    shared: int
    stack: int
    instructions: int
    loads: dict[int, int]


def builds() -> Iterator[Build]:
    """Yield everything that the hosts can launch, at some widths; bfloat16 and float64 at one width."""
    widths = [(torch.float32, D) for D in WIDTHS]
    for dtype, D in [*widths, (torch.bfloat16, 2304), (torch.float64, 33)]:
        rows, sums = ELEMENTS[dtype], "fp64" if dtype == torch.float64 else "fp32"
        yield Build("bag", bag_plan(D, dtype, windows=False), rows, sums)
        yield Build("bag", bag_plan(D, dtype, windows=True), rows, sums)
        yield Build("window_sums", window_plan(D, dtype), rows, sums)
        yield Build("dots", dots_plan(D, dtype), rows, sums)
        for decoder in (False, True):
            # Without `move`: the first of two passes, for the norm that gradients are clipped by.
            for move, momentum in ((False, False), (True, False), (True, True)):
                plan = update_plan(D, dtype, decoder=decoder, unit=decoder, momentum=momentum, move=move)
                yield Build("update_rows", plan, rows, sums)
    yield Build("window_sums", window_plan(2304, torch.float32, parity=1))
    for dtype in (torch.float32, torch.float64):
        yield Build("segment_sums", sums_plan(dtype), sums=ELEMENTS[dtype])
    for k in KS:
        yield Build("screen_filter", screen_plan(Room.of(k).capacity, 0))
        yield Build("screen_filter", screen_plan(Room.of(k).capacity, Room.of(1152).capacity))
    many = Room.of(1152).capacity
    for D, dead, tma in ((33, 0, False), (2304, 0, False), (2304, 0, True), (2304, many, True)):
        plan = fused_plan(D, Room.of(64).capacity, dead, tma=tma, host=False)
        yield Build("product_filter", plan, "bf16")


def compiled(build: Build, capability: int) -> Resources:
    """Compile one program for one kind of GPU; errors are the compiler's own."""
    options = {"num_warps": build.plan.num_warps, "num_stages": build.plan.num_stages}
    made = triton.compile(build.source(), target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "program.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
        usage = _output(tools / "cuobjdump", "--dump-resource-usage", cubin)
        code = _output(tools / "nvdisasm", "-c", cubin)
    found = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    threads, stack = 32 * build.plan.num_warps, found["STACK"] + found["LOCAL"]
    names = [name for name in INSTRUCTION.findall(code) if name != "NOP"]
    loads = Counter(BYTES.get(name.split(".")[-1], 4) for name in names if name.startswith("LDG"))
    shared = made.metadata.shared
    return Resources(build, capability, threads, found["REG"], shared, stack, len(names), dict(loads))


def _output(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout
