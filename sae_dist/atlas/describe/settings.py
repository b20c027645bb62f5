"""The lengths of what an atlas says of each latent."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Lengths of the lists of an atlas, for each latent.

    Attributes:
        top: examples with the greatest codes, one a document.
        bins: halvings of the greatest code; `each`: examples of every one, one a document.
        tokens: tokens that it fires on, and `next`: tokens that follow where it fires.
        logits: tokens whose logits its decoder row raises most, and as many that it lowers.
        near: decoder rows with the greatest cosines.
        together: latents that fire where it does.
        few: firings below which a latent is too rare for claims about it.
        drawn: places looked at for `together`.
    """

    top: int = 20
    bins: int = 5
    each: int = 5
    tokens: int = 10
    next: int = 10
    logits: int = 10
    near: int = 10
    together: int = 10
    few: int = 10
    drawn: int = 16
