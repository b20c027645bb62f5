"""The addresses of pages, relative to the page they stand on: a server's, or files of a folder."""

from dataclasses import dataclass

LATENTS, ASSETS = "latents", "assets"
"""Folders of static pages."""


@dataclass(frozen=True)
class Links:
    """The addresses that a page needs.

    Attributes:
        root: from the page to the start, such as `../`.
        chosen: the latents that have static pages; None: pages of a server, which has all.
    """

    root: str = ""
    chosen: frozenset[int] | None = None

    @classmethod
    def of_path(cls, path: str) -> "Links":
        """Return the addresses for a page of the server at a path."""
        return cls("../" * (path.count("/") - 1))

    @property
    def home(self) -> str:
        """The address of the start."""
        return (self.root or "./") if self.chosen is None else f"{self.root}index.html"

    @property
    def find(self) -> str:
        """The address of the search."""
        return f"{self.root}find"

    @property
    def sentence(self) -> str:
        """The page for a sentence of one's own."""
        return f"{self.root}sentence"

    @property
    def steer(self) -> str:
        """The page for steering."""
        return f"{self.root}steer"

    def asset(self, name: str) -> str:
        """Return the address of a style sheet, a script or a picture."""
        return f"{self.root}{ASSETS}/{name}"

    def latent(self, number: int) -> str | None:
        """Return the address of a latent's page; None: there is no such page."""
        if self.chosen is None:
            return f"{self.root}latent/{number}"
        return f"{self.root}{LATENTS}/{number}.html" if number in self.chosen else None

    def label(self, number: int) -> str:
        """Return where a latent's label is sent to."""
        return f"{self.root}latent/{number}/label"

    def place(self, number: int, at: int) -> str:
        """Return the address of a place where a latent fires."""
        return f"{self.root}latent/{number}/at/{at}"
