"""Which rank's reason is shown, of several that ended."""

import os
from types import SimpleNamespace

import pytest

from sae_dist.launch.spawn import _first_to_fail

OWN = "DataError: shard 7 is damaged"
TOLD = "rank 2 failed: shard 7 is damaged"
GONE = "a rank that rank 1 exchanges data with is gone or silent (connection closed by peer)"
SILENT = "rank 2 (host far, step 11) shows no sign of life, and rank 1 waited 540 s for an answer"
KILLED, ABORTED = -9, -6


@pytest.mark.parametrize(
    "ended,first",
    [
        ([(1, TOLD), (1, OWN), (None, None)], 1),
        ([(1, OWN), (KILLED, None)], 1),
        ([(1, GONE), (KILLED, None)], 1),
        # By torch's watchdog, as others waited for the rank that said why.
        ([(ABORTED, None), (1, OWN), (ABORTED, None)], 1),
        ([(ABORTED, None), (1, SILENT)], 1),
        # By itself, and others missed it.
        ([(1, GONE), (ABORTED, None)], 1),
        ([(1, TOLD), (ABORTED, None), (0, None)], 1),
        ([(0, None), (3, None)], 1),
    ],
)
def test_the_cause_is_shown_before_what_follows(tmp_path, ended, first):
    ranks = [SimpleNamespace(poll=lambda code=code: code) for code, _ in ended]
    for rank, (_, reason) in enumerate(ended):
        if reason is not None:
            path = tmp_path / f"rank_{rank}.error"
            path.write_text(reason)
            os.utime(path, ns=(rank, rank))
    assert _first_to_fail(ranks, tmp_path) == first
