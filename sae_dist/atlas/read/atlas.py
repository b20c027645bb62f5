"""An atlas in use: what is known of each latent, read from its files as it is asked for.

Nothing is loaded at once: a latent is found in its part's file by arithmetic, and there by halving:
groups of rows ascend. Letters: P codes, N places.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from sae_dist.atlas.find.direction import open_decoder
from sae_dist.atlas.read.codes import Postings
from sae_dist.atlas.read.facts import atlas_folder, read_facts
from sae_dist.atlas.read.labels import REVIEWS, Labels
from sae_dist.atlas.read.places import Places
from sae_dist.atlas.read.rows import Context, ContextToken, Example, Latent, latent_of
from sae_dist.atlas.read.table import TableFile, numbers
from sae_dist.atlas.read.view import LatentView
from sae_dist.atlas.read.words import Words
from sae_dist.atlas.schema import (
    EXAMPLES,
    EXAMPLES_SCHEMA,
    LATENTS,
    LATENTS_SCHEMA,
    POSTINGS,
    POSTINGS_SCHEMA,
    TOKENS,
    TOKENS_SCHEMA,
    part_file,
    part_latents,
    parts,
)
from sae_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from sae_dist.atlas.find.found import Found
    from sae_dist.atlas.find.text import Encode
    from sae_dist.tokens.decoder import Decoder

SCHEMAS = {POSTINGS: POSTINGS_SCHEMA, LATENTS: LATENTS_SCHEMA, EXAMPLES: EXAMPLES_SCHEMA}
LEFT, RIGHT = 16, 8


class Atlas:
    """An atlas, read-only; `Atlas.open` or a dictionary's `atlas()` makes one. Threads may share it.

    Attributes:
        folder: of its files.
        facts: the manifest: model, hook, numbers of tokens and latents, how it was made.
        words: the text of token ids.
        encode: encodes a text with model and dictionary, for `find`; None: that is done without them.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], words: Words):
        self.folder, self.facts, self.words = folder, facts, words
        self.encode: Encode | None = None
        self._lock = RLock()
        self._files: dict[tuple[str, int], TableFile] = {}

    @classmethod
    def open(cls, where: str | Path, decoder: "Decoder | None" = None) -> "Atlas":
        """Open an atlas; its large files are opened when they are asked for.

        Args:
            where: its folder, the folder of a run that has one, or the export of such a run.
            decoder: gives tokens their text; None: the tokenizer of the run's model does, if it is here.

        Raises:
            ConfigError: there is none, or it is not complete, or its manifest or text is damaged.
        """
        folder = atlas_folder(where)
        facts = read_facts(folder)
        atlas = cls(folder, facts, Words(folder.parent, decoder))
        if len(atlas.places) != facts["tokens"]:
            raise ConfigError(
                f"{folder / TOKENS} has {len(atlas.places):,} places, and the manifest says "
                f"{facts['tokens']:,}; make the atlas again"
            )
        return atlas

    @property
    def num_latents(self) -> int:
        """The number F of latents."""
        return int(self.facts["num_latents"])

    def __len__(self) -> int:
        """Return the number of latents."""
        return self.num_latents

    @cached_property
    def places(self) -> Places:
        """The tokens of the text by their places."""
        return Places(self._opened(self.folder / TOKENS, TOKENS_SCHEMA))

    @cached_property
    def postings(self) -> Postings:
        """The codes of latents by latent."""
        return Postings(lambda latent: self.table(POSTINGS, latent // part_latents(self.num_latents)))

    @cached_property
    def labels(self) -> Labels:
        """The words that were given to latents."""
        return Labels(self.folder / REVIEWS, self.num_latents)

    @cached_property
    def decoder(self) -> Any:
        """The decoder rows [F, E] of the dictionary beside the atlas, a tensor mapped from its file.

        Raises:
            ConfigError: there is none, or it is another dictionary.
        """
        return open_decoder(self.folder.parent, self.num_latents, self.facts["dictionary"])

    def table(self, name: str, part: int) -> TableFile:
        """Return a part's file of a table.

        Raises:
            ConfigError: it is missing or damaged.
        """
        with self._lock:
            if (name, part) not in self._files:
                path = part_file(self.folder, name, part)
                self._files[name, part] = self._opened(path, SCHEMAS[name])
            return self._files[name, part]

    def _opened(self, path: Path, schema: pa.Schema) -> TableFile:
        """Open a file, whose footer must be the one that the manifest knows."""
        name = path.relative_to(self.folder).as_posix()
        return TableFile(path, schema, self.facts["footers"].get(name, ""))

    def checked(self, latent: int) -> int:
        """Return the number of a latent that exists.

        Raises:
            ConfigError: it does not.
        """
        if isinstance(latent, bool) or int(latent) != latent or not 0 <= latent < self.num_latents:
            raise ConfigError(f"latent {latent} does not exist; the latents are 0 to {self.num_latents - 1}")
        return int(latent)

    def latent(self, latent: int) -> Latent:
        """Return all that the table of latents says of one.

        Raises:
            ConfigError: it does not exist, or its file is damaged.
        """
        latent = self.checked(latent)
        (row,) = self._rows(LATENTS, latent).to_pylist() or [None]
        if row is None:
            raise ConfigError(f"{self.folder} says nothing of latent {latent}; make the atlas again")
        return latent_of(row, self.words)

    def examples(self, latent: int, left: int = LEFT, right: int = RIGHT) -> list[Example]:
        """Return places where a latent fires, those with the greatest codes first, then bin by bin.

        Args:
            left, right: tokens before and after each, of the same segment.

        Raises:
            ConfigError: it does not exist, or a file is damaged.
        """
        latent = self.checked(latent)
        rows = self._rows(EXAMPLES, latent).sort_by([("bin", "ascending"), ("rank", "ascending")]).to_pylist()
        contexts = self.contexts([row["at"] for row in rows], latent, left, right)
        return [
            Example(row["bin"], row["rank"], row["code"], context)
            for row, context in zip(rows, contexts, strict=True)
        ]

    def context(self, at: int, latent: int | None = None, left: int = LEFT, right: int = RIGHT) -> Context:
        """Return the tokens around a place, of the same segment; with a latent its codes there, too.

        Raises:
            ConfigError: there is no such place or latent, or a file is damaged.
        """
        return self.contexts([at], latent, left, right)[0]

    def contexts(
        self, ats: Sequence[int], latent: int | None = None, left: int = LEFT, right: int = RIGHT
    ) -> list[Context]:
        """Return the contexts of several places, which takes less time than one after the other."""
        around = [self.places.around(at, left, right) for at in ats]
        near = [np.arange(each.first, each.first + len(each), dtype=np.int64) for each in around]
        at_N = np.unique(np.concatenate([np.empty(0, np.int64), *near]))
        code_N = np.zeros(len(at_N), np.float32)
        if latent is not None and len(at_N):
            code_N = self.postings.at(self.checked(latent), at_N)
        found = []
        for at, own_N, stretch in zip(ats, near, around, strict=True):
            ids = tuple(stretch.token_T.tolist())
            columns = (own_N.tolist(), ids, self.words.pieces(ids), stretch.state_T.tolist())
            codes = code_N[np.searchsorted(at_N, own_N)].tolist()
            tokens = tuple(ContextToken(*row) for row in zip(*columns, codes, strict=True))
            found.append(Context(int(at), int(stretch.document_T[0]), tokens))
        return found

    def codes(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places [P], uint32, and the codes [P], float32, of a latent, in the order of places.

        Raises:
            ConfigError: it does not exist, or its file is damaged.
        """
        return self.postings.of(self.checked(latent))

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of token ids; without a tokenizer, numbers."""
        return "".join(self.words.pieces(tuple(ids)))

    @cached_property
    def rates(self) -> np.ndarray:
        """The share of kept tokens on which each latent fires [F], float64."""
        return self.column("rate", np.float64)

    @cached_property
    def counts(self) -> np.ndarray:
        """The number of places where each latent fires [F], int64."""
        return self.column("count", np.int64)

    def column(self, name: str, kind: type) -> np.ndarray:
        """Return a column of numbers of the table of latents, for all of them [F].

        Raises:
            ConfigError: a file is damaged.
        """
        files = [self.table(LATENTS, part) for part in range(parts(self.num_latents))]
        if (rows := sum(each.num_rows for each in files)) != self.num_latents:
            raise ConfigError(f"{self.folder} has {rows:,} rows of latents; make the atlas again")
        found_F: np.ndarray = np.zeros(self.num_latents, kind)
        for file in files:
            for table in file.batches(["latent", name]):
                latent_f = numbers(table, "latent")
                if len(latent_f) and int(latent_f.max()) >= self.num_latents:
                    raise ConfigError(f"{self.folder} has latents that do not exist; make the atlas again")
                found_F[latent_f] = numbers(table, name)
        return found_F

    def sql(self, query: str, **limits: Any) -> pa.Table:
        """Return the answer to a query in SQL; see `sae_dist.atlas.read.sql.answer`.

        Raises:
            ConfigError: it is not a single SELECT, or is wrong, or has too many rows.
        """
        from sae_dist.atlas.read.sql import answer

        return answer(self.folder, self.num_latents, query, **limits)

    def find(self, text: str | None = None, **how: Any) -> "Found":
        """Find latents by a text, token, pattern, direction, label or co-firing; see `atlas.find.find.find`.

        Raises:
            ConfigError: not exactly one of them is given, or it is not valid, or nothing has it.
        """
        from sae_dist.atlas.find.find import find

        return find(self, text, **how)

    def __getitem__(self, latent: int) -> LatentView:
        """Return a latent with its examples, for a notebook to show.

        Raises:
            ConfigError: it does not exist, or a file is damaged.
        """
        label = self.labels.of([self.checked(latent)]).get(latent)
        return LatentView(self.latent(latent), self.examples(latent), label, self.facts)

    def __iter__(self) -> Iterator[LatentView]:
        """Iterate over all latents."""
        return (self[latent] for latent in range(self.num_latents))

    def _rows(self, name: str, latent: int) -> pa.Table:
        """Return the rows of a latent in a table of its part."""
        file = self.table(name, latent // part_latents(self.num_latents))
        groups_G = file.groups_with("latent", latent, latent)
        columns = SCHEMAS[name].names
        if not len(groups_G):
            return SCHEMAS[name].empty_table()
        # A group's rows are found by their latent alone before the rest of them is made values.
        table = file.read(groups_G, columns)
        return table.filter(pa.array(numbers(table, "latent") == latent))

    def __repr__(self) -> str:
        """Describe the atlas in a line."""
        facts = self.facts
        return f"Atlas({self.num_latents:,} latents, {facts['kept']:,} of {facts['tokens']:,} tokens)"
