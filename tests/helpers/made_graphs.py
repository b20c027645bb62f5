"""Graphs of random numbers, as tracing makes them, of any size and with any words."""

import torch

from sae_dist.graph.check.verdict import Table, Verdict
from sae_dist.graph.graph import Checks, Graph, Layer, Node

HOSTILE = (
    "</script><script>alert(1)</script>",
    "\u202egnp.exe\x1b[31m",
    '"(p=9) onload="x',
    "{{ 7 * 7 }}",
    "",
)
CHECKS = Checks(
    row_sums=1e-6,
    row_sums_absolute=2e-6,
    linear=1e-6,
    faithful=3e-7,
    tolerance=1e-3,
    dtype="float32",
    targets=12,
    norms=9,
    patterns=4,
)

VERDICT = Verdict(
    level="partly",
    lines=("The model does in part what the graph says: signs agree in 14 of 20 cuts.", HOSTILE[0]),
    tables=(Table("Cuts", ("node", "measured"), (("t_0", "−1.2"), (HOSTILE[2], "0.3")), "<b>in logits</b>"),),
)


def graph_of(positions=8, layers=3, latents=60, each=12, logits=3, seed=0, tokens=None, hooks=None, **more):
    """A graph with some latents at random places, an error at each place, and links from below and before.

    Args:
        latents: nodes of that kind; each: links of a target.
        hooks: target hooks, one for each layer.
        more: fields of the graph.
    """
    draw = torch.Generator().manual_seed(seed)

    def whole(high, size):
        return torch.randint(high, (size,), generator=draw).tolist()

    tokens = tuple(tokens or [f" word{n}" for n in range(positions)])
    positions = len(tokens)
    own = sorted(
        set(zip(whole(layers, latents), whole(positions, latents), whole(500, latents), strict=True))
    )
    found = [Node(f"t_{p}", "token", -1, p, token=100 + p) for p in range(positions)]
    found += [
        Node(f"f_{layer}_{p}_{latent}", "latent", layer, p, latent=latent, activation=0.5 + latent / 100)
        for layer, p, latent in own
    ]
    found += [Node(f"e_{layer}_{p}", "error", layer, p) for layer in range(layers) for p in range(positions)]
    odds = [0.6 / 2**n for n in range(logits)]
    found += [
        Node(f"l_{900 + n}", "logit", layers, positions - 1, token=900 + n, influence=odd, probability=odd)
        for n, odd in enumerate(odds)
    ]
    rows, columns = _links(found, each, draw)
    weight_L = torch.randn(len(rows), generator=draw)
    influence_M = _influence(found, rows, columns, weight_L)
    nodes = tuple(
        each if each.kind == "logit" else Node(**vars(each) | {"influence": float(influence_M[n])})
        for n, each in enumerate(found)
    )
    values = [each.activation or 0.0 for each in nodes]
    fields = {
        "nodes": nodes,
        "rows": torch.tensor(rows).long(),
        "columns": torch.tensor(columns).long(),
        "weights": weight_L,
        "constants": torch.zeros(len(nodes)),
        "total": torch.randn(len(nodes), logits, generator=draw),
        "values": torch.tensor([*values[:-logits], *([1.5] * logits)]),
        "ids": tuple(range(100, 100 + positions)),
        "tokens": tokens,
        "targets": tuple(f" out{n}" for n in range(logits)),
        "prompt": "".join(tokens),
        "model": "some/model",
        "set_name": "a set",
        "layers": tuple(
            Layer(hook, f"{hook}:in") for hook in hooks or [f"layers.{n}.mlp" for n in range(layers)]
        ),
        "error_share": 0.3,
        "unfollowed": 0.05,
        "replacement_score": 0.6,
        "completeness": 0.7,
        "influence_sum": float(influence_M.sum()) / 0.8,
        "latents": (5 * latents, 2 * latents, latents),
        "checks": CHECKS,
        "settings": {"max_nodes": 2000, "node_threshold": 0.8, "edge_threshold": 0.98},
    }
    return Graph(**fields | more)


def _links(nodes, each, draw) -> tuple[list[int], list[int]]:
    rows, columns = [], []
    for target, node in enumerate(nodes):
        if node.kind not in ("latent", "logit"):
            continue
        below = [
            n for n, other in enumerate(nodes) if other.layer < node.layer and other.position <= node.position
        ]
        chosen = torch.randperm(len(below), generator=draw)[:each].sort().values.tolist()
        columns += [below[place] for place in chosen]
        rows += [target] * len(chosen)
    return rows, columns


def _influence(nodes, rows, columns, weight_L) -> torch.Tensor:
    size_L, row_L, column_L = weight_L.abs().double(), torch.tensor(rows).long(), torch.tensor(columns).long()
    total_M = torch.zeros(len(nodes), dtype=torch.float64).index_add(0, row_L, size_L)
    own_M = torch.tensor([each.influence for each in nodes], dtype=torch.float64)
    share_M, found_M = own_M, torch.zeros_like(own_M)
    while share_M.sum() > 1e-12:
        share_M = torch.zeros_like(own_M).index_add(0, column_L, share_M[row_L] * size_L / total_M[row_L])
        found_M = found_M + share_M
    return found_M
