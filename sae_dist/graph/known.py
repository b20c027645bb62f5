"""Facts from atlases about the latents of a graph: labels, tokens, logits, and texts that they fire on.

Where there is no atlas, the head of the model says what latents raise.

Letters: as core.types; I named latents.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_dist.atlas.describe.effects import top_logits, why_no_fit
from sae_dist.atlas.describe.lists import Ranked
from sae_dist.atlas.read.rows import Example
from sae_dist.atlas.schema import MANIFEST, TOP
from sae_dist.core.run_folder import ATLAS, EXPORT
from sae_dist.graph.words import LATENT
from sae_dist.interpret.place import REJECTED

if TYPE_CHECKING:
    from sae_dist.graph.graph import Graph
    from sae_dist.interpret.dictionary import Dictionary
    from sae_dist.interpret.model import LanguageModel

TOKENS = 5
"""Tokens of each kind that are kept of a latent."""
CONTEXTS, MOST_WITH_CONTEXTS = 3, 400
LEFT, RIGHT = 14, 6


@dataclass(frozen=True)
class Excerpt:
    """An excerpt of text that a latent fires on.

    Attributes:
        tokens: their texts; codes: the latent's, 0 where it is silent.
        own: the place among them of the code that the excerpt is shown for.
    """

    tokens: tuple[str, ...]
    codes: tuple[float, ...]
    own: int


@dataclass(frozen=True)
class Known:
    """A record of what is known of a latent.

    Attributes:
        label: words that it was given; empty: none, or rejected ones.
        state: of the label, such as confirmed; empty: there is none.
        rate: the share of tokens on which it fires.
        most: its greatest code in the text of the atlas.
        fires: tokens on which it fires, the most telling first.
        up, down: tokens whose logits it raises and lowers most by its decoder row alone, per unit of code.
    """

    label: str = ""
    state: str = ""
    rate: float | None = None
    most: float | None = None
    fires: tuple[str, ...] = ()
    up: tuple[tuple[str, float], ...] = ()
    down: tuple[tuple[str, float], ...] = ()
    excerpts: tuple[Excerpt, ...] = ()


def known_of(
    graph: "Graph",
    dictionaries: "Sequence[Dictionary]",
    lm: "LanguageModel | None" = None,
    contexts: int = CONTEXTS,
    most: int = MOST_WITH_CONTEXTS,
) -> dict[tuple[int, int], Known]:
    """Return what is known of the latents of a graph, by place of the graph and latent.

    Args:
        dictionaries: of the set, in its order.
        lm: its head says what latents raise and lower whose dictionaries have no atlas; None: nothing does.
        contexts: excerpts of each latent.
        most: latents that have excerpts, or effects by the head: those with the greatest influence.

    Raises:
        ConfigError: an atlas is damaged, or of another dictionary.
    """
    influence: dict[tuple[int, int], float] = {}
    for node in graph.nodes:
        if node.kind == LATENT and node.latent is not None:
            key = (node.layer, node.latent)
            influence[key] = influence.get(key, 0.0) + node.influence
    best = set(sorted(influence, key=lambda key: -influence[key])[:most])
    found: dict[tuple[int, int], Known] = {}
    # A layer without a transcoder is a place of the graph, and has no dictionary.
    places = [place for place, layer in enumerate(graph.layers) if layer.hook is not None]
    for layer, dictionary in zip(places, dictionaries, strict=True):
        latents = sorted(latent for place, latent in influence if place == layer)
        wanted = [latent for latent in latents if (layer, latent) in best]
        own: dict[int, Known] = {}
        if latents and _has_atlas(dictionary):
            own = _of_atlas(dictionary, latents, set(wanted), contexts)
        elif wanted and lm is not None:
            own = _of_head(dictionary, wanted, lm)
        found |= {(layer, latent): each for latent, each in own.items()}
    return found


def _has_atlas(dictionary: "Dictionary") -> bool:
    folder = dictionary.place.folder
    run = folder.parent if folder.name == EXPORT else folder
    return (run / ATLAS / MANIFEST).is_file()


def _of_atlas(
    dictionary: "Dictionary", latents: list[int], wanted: set[int], contexts: int
) -> dict[int, Known]:
    atlas = dictionary.atlas()
    labels = {key: each for key, each in atlas.labels.of(latents).items() if each.state != REJECTED}
    found = {}
    for latent in latents:
        about, label = atlas.latent(latent), labels.get(latent)
        examples = atlas.examples(latent, LEFT, RIGHT) if latent in wanted else []
        strongest = [each for each in examples if each.bin == TOP][:contexts]
        found[latent] = Known(
            label=label.text if label else "",
            state=label.state if label else "",
            rate=about.rate,
            most=about.most,
            fires=tuple(each.text for each in (about.tokens or ())[:TOKENS]),
            up=tuple((each.text, each.logit) for each in (about.up or ())[:TOKENS]),
            down=tuple((each.text, each.logit) for each in (about.down or ())[:TOKENS]),
            excerpts=tuple(map(_excerpt, strongest)),
        )
    return found


def _of_head(dictionary: "Dictionary", latents: list[int], lm: "LanguageModel") -> dict[int, Known]:
    """Return the tokens whose logits decoder rows change most, past all layers between and the norm."""
    W_U_VH = lm.model.get_output_embeddings().weight
    rows_IE = dictionary.some(latents).W_dec_IE
    if lm.tokenizer is None or why_no_fit(rows_IE.shape[1], W_U_VH.shape[1]):
        return {}
    up, down = top_logits(rows_IE, W_U_VH[: len(lm.tokenizer)].detach(), TOKENS)
    words = [[_pairs(each, n, lm) for each in (up, down)] for n in range(len(latents))]
    return {latent: Known(up=own[0], down=own[1]) for latent, own in zip(latents, words, strict=True)}


def _pairs(ranked: Ranked, row: int, lm: "LanguageModel") -> tuple[tuple[str, float], ...]:
    texts = lm.pieces(ranked.id_fN[row].tolist())
    return tuple(zip(texts, ranked.values[0][row].tolist(), strict=True))


def _excerpt(example: Example) -> Excerpt:
    tokens = example.context.tokens
    return Excerpt(
        tokens=tuple(each.text for each in tokens),
        codes=tuple(each.code for each in tokens),
        own=next(n for n, each in enumerate(tokens) if each.at == example.context.at),
    )


def label_of(known: Known | None) -> str:
    """Return a latent's label; without one, the tokens it fires on and those it raises."""
    if known is None:
        return ""
    if known.label:
        return known.label
    parts = [
        f"{word} {', '.join(repr(each) for each in tokens[:3])}"
        for word, tokens in (("on", known.fires), ("raises", [token for token, _ in known.up]))
        if tokens
    ]
    return "; ".join(parts)
