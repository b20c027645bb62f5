"""Single paths of a graph in the real model: a change goes from node to node, and nowhere else.

Letters: as core.types; C paths.
"""

from collections.abc import Sequence

import numpy as np

from sae_dist.graph.check.chosen import Firing
from sae_dist.graph.check.predicted import Floats, Path, Predicted
from sae_dist.graph.check.seen import Change, ratio_of
from sae_dist.graph.check.trials import Trials


def measured(trials: Trials, predicted: Predicted, paths: Sequence[Path], nodes: dict[int, Firing]) -> Floats:
    """Return what cutting each path does to the logit at its end [C].

    Its first latent is cut while every other target hook stays as it is; the code of the next latent is then
    computed from what its hook sees, and so on to the logit.

    Args:
        nodes: the latents of all paths, by their numbers.
    """
    found_C = np.zeros(len(paths))
    delta = {n: -nodes[path.nodes[0]].code for n, path in enumerate(paths)}
    logits = {node: place for place, node in enumerate(predicted.logits)}
    for step in range(max((len(path.nodes) - 1 for path in paths), default=0)):
        own = [n for n in delta if len(paths[n].nodes) - 1 > step and delta[n] != 0]
        changes = [[_moved(nodes[paths[n].nodes[step]], delta[n])] for n in own]
        onward = [paths[n].nodes[step + 1] for n in own]
        keys = [nodes[node].key for node in onward if node in nodes]
        outcome = trials.watching(keys).run(changes, pinned=True)
        place = 0
        for row, (n, node) in enumerate(zip(own, onward, strict=True)):
            if node in nodes:
                move = float(outcome.pre_CM[row, place])
                delta[n], place = new_code(trials, nodes[node], move) - nodes[node].code, place + 1
            else:
                found_C[n] = float(outcome.logit_CT[row, logits[node]])
    return found_C


def new_code(trials: Trials, latent: Firing, move: float) -> float:
    """Return a latent's code when its score moves; of TopK, as if it stayed selected.

    Args:
        move: by how much its pre-activation changes, in units of codes.
    """
    some = trials.at(latent.layer)[0].some([latent.latent])
    x_1D, sae = trials.input(latent.layer)[latent.position][None], some.sae
    z_11 = (x_1D if sae.transcoder else x_1D - sae.b_dec_E) @ sae.W_enc_FD.T + move / ratio_of(some)[0]
    if sae.form.codes is not None:
        return float(sae.form.codes(z_11, sae.vectors))
    assert sae.b_enc_F is not None
    return float((z_11 + sae.b_enc_F).clamp(min=0))


def _moved(latent: Firing, delta: float) -> Change:
    return Change(latent.layer, latent.position, delta * latent.row_E)
