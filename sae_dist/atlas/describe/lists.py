"""Columns of lists, one for each latent of a part, made from arrays.

Letters: f latents of a part; N entries of a list; S entries of all lists, sorted by latent.
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Ranked:
    """A list of tokens or latents for each latent of a part, best first.

    Attributes:
        id_fN: their numbers.
        values: the numbers beside them, each [f, N], in the order of the table's columns.
        size_f: how many entries of each row there are; None: all N.
    """

    id_fN: np.ndarray
    values: tuple[np.ndarray, ...]
    size_f: np.ndarray | None = None

    @staticmethod
    def joined(parts: list["Ranked"]) -> "Ranked":
        """Return the lists of several groups of latents, one after the other."""
        values = zip(*(each.values for each in parts), strict=True)
        sizes = [
            np.full(len(each.id_fN), each.id_fN.shape[1]) if each.size_f is None else each.size_f
            for each in parts
        ]
        return Ranked(
            np.concatenate([each.id_fN for each in parts]),
            tuple(np.concatenate(each) for each in values),
            np.concatenate(sizes),
        )

    def of(self, rows: slice) -> "Ranked":
        """Return the lists of some latents."""
        values = tuple(each[rows] for each in self.values)
        return Ranked(self.id_fN[rows], values, None if self.size_f is None else self.size_f[rows])

    def column(self, kind: pa.ListType) -> pa.Array:
        """Return the lists as a column of a kind that `LATENTS_SCHEMA` has."""
        num, longest = self.id_fN.shape
        size_f = np.full(num, longest) if self.size_f is None else self.size_f
        there_fN = np.arange(longest) < size_f[:, None]
        return structs(kind, size_f, [each[there_fN] for each in (self.id_fN, *self.values)])


@dataclass(frozen=True)
class Extra:
    """The lists that do not follow from a part's postings; None: not computed, and the column is null.

    Attributes:
        up, down: tokens whose logits the decoder row raises and lowers most: ids and logits.
        lens_up, lens_down: and through the mean Jacobian of the layers between, too.
        near: latents and cosines.
        together: latents, shares and lifts.
    """

    up: Ranked | None = None
    down: Ranked | None = None
    lens_up: Ranked | None = None
    lens_down: Ranked | None = None
    near: Ranked | None = None
    together: Ranked | None = None


def structs(kind: pa.ListType, size_f: np.ndarray, values: list[np.ndarray]) -> pa.Array:
    """Return a column of lists of structs.

    Args:
        values: of each field, for all entries [S].
    """
    fields = list(kind.value_type)
    arrays = [pa.array(each, field.type) for field, each in zip(fields, values, strict=True)]
    return pa.ListArray.from_arrays(_offsets(size_f), pa.StructArray.from_arrays(arrays, fields=fields))


def numbers(kind: pa.ListType, size_f: np.ndarray, value_S: np.ndarray) -> pa.Array:
    """Return a column of lists of numbers."""
    return pa.ListArray.from_arrays(_offsets(size_f), pa.array(value_S, kind.value_type))


def _offsets(size_f: np.ndarray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(size_f)]), pa.int32())
