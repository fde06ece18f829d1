"""The neighbours of a query as arrays that read as hits: a thousand of them cost one record."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self, TypeAlias, overload

import numpy as np
from numpy.typing import NDArray

from ralmspec_plugins.errors import InputError
from ralmspec_plugins.knn.datastore import Ids
from ralmspec_plugins.retrieval.ranking import FloatArray
from ralmspec_plugins.types import Hit, Passage

Tokens: TypeAlias = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Neighbours(Sequence[Hit]):
    """Entries of a datastore, nearest first, ties by id; immutable.

    Whoever works with them reads the arrays. As a sequence they are hits, each made
    when it is asked for: its passage's id is the entry's, its text the token's number,
    its score minus the squared distance. A hit so made equals one of any other
    retriever; the arrays are equal when all numbers in them are.

    >>> values = np.array([50, 60], dtype=np.int32)
    >>> near = Neighbours(np.array([7, 3]), values, np.array([0.5, 2.0]))
    >>> near[0].passage.id, near[0].passage.text, near[0].score
    ('7', '50', -0.5)
    >>> [hit.score for hit in near], near[:1].ids.tolist()
    ([-0.5, -2.0], [7])

    Attributes:
        ids: of the entries, their rows in the datastore.  # int64 [k]
        values: the tokens that came next.  # int32 [k]
        distances: squared Euclidean distances to the query, ascending.  # float64 [k]
    """

    ids: Ids
    values: Tokens
    distances: FloatArray
    immutable: ClassVar[bool] = True  # says `records.fixed` to leave them as they are

    def __post_init__(self) -> None:
        """Take the arrays over: nobody can write to them from now on.

        Raises:
            InputError: they are not of one length.
        """
        for name, kind in (("ids", np.int64), ("values", np.int32), ("distances", np.float64)):
            array = np.ascontiguousarray(getattr(self, name), dtype=kind)
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        shapes = self.ids.shape, self.values.shape, self.distances.shape
        if self.ids.ndim != 1 or len(set(shapes)) > 1:
            raise InputError(
                f"neighbours need as many ids as values and distances, in one row each; got "
                f"arrays of the shapes {shapes[0]}, {shapes[1]} and {shapes[2]}"
            )

    def __len__(self) -> int:
        """Count them."""
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Hit: ...

    @overload
    def __getitem__(self, index: slice) -> Self: ...

    def __getitem__(self, index: int | slice) -> Hit | Self:
        """Make one hit, or give some of the neighbours; copied, so that the others can go."""
        if isinstance(index, slice):
            if len(range(*index.indices(len(self)))) == len(self) and (index.step or 1) > 0:
                return self
            ids, values, distances = self.ids[index], self.values[index], self.distances[index]
            return type(self)(ids.copy(), values.copy(), distances.copy())
        passage = Passage(str(self.ids[index]), str(self.values[index]))
        return Hit(passage, 0.0 - float(self.distances[index]))  # never -0.0

    def __eq__(self, other: object) -> bool:
        """Say whether all ids, values and distances are the same, to the bit."""
        if self is other:
            return True
        if not isinstance(other, Neighbours):
            return NotImplemented
        return (
            np.array_equal(self.ids, other.ids)
            and np.array_equal(self.values, other.values)
            and np.array_equal(self.distances, other.distances)
        )

    def __hash__(self) -> int:
        """Agree with equality; ids and distances tell enough apart."""
        return hash((self.ids.tobytes(), (self.distances + 0.0).tobytes()))

    def __repr__(self) -> str:
        """Name the nearest and count them."""
        nearest = f", nearest {self.ids[0]} at {self.distances[0]:.4g}" if len(self) else ""
        return f"Neighbours({len(self)}{nearest})"
