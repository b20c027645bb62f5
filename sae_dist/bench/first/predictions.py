"""Predictions for one H200, before any card has run this: a measurement strikes each out.

B = 8192 rows, D = 2304, float32 weights. Two ceilings were measured on such a card by others: 788 TFLOP/s of
a product in bfloat16, 4.3 TB/s of a copy. All else follows from operations and bytes.
"""

Expected = dict[str, tuple[float, float]]
"""By name, the least and the most that is expected."""

EXPECTED: dict[str, Expected] = {
    "env": {"product_tflops": (740, 800), "copy_gb_s": (4100, 4400)},
    "kernels": {"largest_error": (0, 1e-5)},
    "waits": {"waits_per_step": (0, 1)},
    "step": {"step_ms": (20, 36), "tokens_per_s": (230_000, 410_000)},
    "redone": {
        "normal_131072_k32": (0, 1e-4),
        "normal_131072_k64": (0, 1e-4),
        "normal_1048576_k32": (0, 1e-4),
    },
    "fused": {"all_chunks_ms": (14, 19), "all_fused_128x128x64_ms": (10, 16)},
    "last_row": {"last_row_error": (0, 1e-6)},
    "wide": {"step_ms": (150, 210), "peak_gb": (50, 80)},
    "widest": {"step_ms": (100, 350), "peak_gb": (90, 135)},
}


def beside(step: str, found: dict[str, float | str]) -> dict[str, str]:
    """Return what was expected of each number found: whether it is, and the range."""
    said = {}
    for name, (least, most) in EXPECTED.get(step, {}).items():
        value = found.get(name)
        if isinstance(value, (int, float)):
            verdict = "as expected" if least <= value <= most else "not as expected"
            said[name] = f"{verdict}, {least:g} to {most:g}"
    return said
