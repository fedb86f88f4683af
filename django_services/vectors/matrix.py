"""The vectors of one collection as a matrix in memory, exact to search.

Imported with the first search, since it needs numpy. A `Matrix` never changes:
what was written since is another matrix, which shares the rows that stayed. A
row belongs to a group (of a text's chunks: their source), and a group counts as
near as its nearest row.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from . import arithmetic
from .products import Scores, products

Ints = npt.NDArray[np.int64]
Key: TypeAlias = Hashable

#: By how much a float32 product of unit vectors may err: what is nearer than
#: this to the last place is measured again, exactly.
TOLERANCE = 1e-5
#: A part of the rows smaller than this is copied out and multiplied alone.
SMALL_PART = 1 / 8
#: Share of dead rows from which the live ones are copied to a storage of their own.
MOST_DEAD = 1 / 4


class Rows(NamedTuple):
    """Rows as the database returns them, column by column."""

    ids: Sequence[int]
    keys: Sequence[Key]  # of their groups, as the database stores them
    vectors: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class Found:
    """The groups found: the nearest row of each, nearest first.

    Equal distances are in the order of the groups' keys. It may hold more than
    were wanted, where the last place is shared.
    """

    ids: list[int]
    distances: list[float]


class Storage:
    """Rows in the order of their arrival. They are added, never changed."""

    def __init__(self, dimensions: int, capacity: int) -> None:
        self.dimensions = dimensions
        self.used = 0
        self.vectors: arithmetic.Vectors = np.empty((capacity, dimensions), dtype="<f4")
        self.scales: Scores = np.empty(capacity, dtype=np.float32)
        self.ids: Ints = np.empty(capacity, dtype=np.int64)
        self.groups: Ints = np.empty(capacity, dtype=np.int64)
        self.group_of: dict[Key, int] = {}
        self.keys: list[Key] = []
        self.lock = threading.Lock()

    @property
    def size(self) -> int:
        """Bytes that it may take."""
        return self.vectors.nbytes + self.scales.nbytes + self.ids.nbytes + self.groups.nbytes

    def has_room(self, count: int) -> bool:
        return self.used + count <= len(self.ids)

    def add(self, rows: Rows) -> slice:
        """Write rows behind the last one; returns where they stand."""
        ids = np.array(rows.ids, dtype=np.int64)
        groups = self._groups(rows.keys)
        vectors = np.frombuffer(b"".join(rows.vectors), dtype="<f4")
        return self._write(ids, groups, vectors.reshape(len(ids), self.dimensions))

    def add_from(self, other: Storage, rows: Ints) -> None:
        """Copy rows of another storage."""
        groups = self._groups([other.keys[group] for group in other.groups[rows].tolist()])
        self._write(other.ids[rows], groups, other.vectors[rows])

    def _write(self, ids: Ints, groups: Ints, vectors: arithmetic.Vectors) -> slice:
        place = slice(self.used, self.used + len(ids))
        self.ids[place], self.groups[place], self.vectors[place] = ids, groups, vectors
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        self.scales[place] = np.divide(
            1.0, lengths, out=np.zeros(len(ids), np.float32), where=lengths > 0
        )
        self.used = place.stop
        return place

    def _groups(self, keys: Sequence[Key]) -> Ints:
        """Return the numbers of the groups; a new key gets the next one."""
        group_of = self.group_of
        new = [key for key in dict.fromkeys(keys) if key not in group_of]
        group_of.update(zip(new, range(len(group_of), len(group_of) + len(new)), strict=True))
        self.keys.extend(new)
        return np.array([group_of[key] for key in keys], dtype=np.int64)


class Matrix:
    """An immutable choice of a storage's rows.

    Args:
        storage: Where the rows stand.
        live: Positions in the storage of the rows chosen, by group and id.
    """

    def __init__(self, storage: Storage, live: Ints) -> None:
        self.storage = storage
        self.used = storage.used
        self._live = live
        self._is_whole = len(live) == self.used and bool(
            (live == np.arange(self.used, dtype=np.int64)).all()
        )
        groups = storage.groups[live]
        is_first = np.ones(len(live), dtype=bool)
        is_first[1:] = groups[1:] != groups[:-1]
        self._starts: Ints = np.flatnonzero(is_first)
        self._ends: Ints = np.append(self._starts[1:], len(live))
        self._members: Ints = groups[self._starts]
        self._place_of_group = np.full(len(storage.keys), -1, dtype=np.int64)
        self._place_of_group[self._members] = np.arange(len(self._members))

    @classmethod
    def build(cls, dimensions: int, capacity: int, batches: Iterable[Rows]) -> Matrix:
        """Return the matrix of rows that come in batches.

        Args:
            dimensions: Length of every vector.
            capacity: How many rows are expected; it grows where more come.
            batches: Rows, each batch at most as long as is wise to hold twice.
        """
        storage = Storage(dimensions, capacity)
        for batch in batches:
            if not storage.has_room(len(batch.ids)):
                larger = Storage(dimensions, 2 * (storage.used + len(batch.ids)))
                larger.add_from(storage, np.arange(storage.used))
                storage = larger
            storage.add(batch)
        return cls(storage, _by_group(storage, np.arange(storage.used)))

    def __len__(self) -> int:
        return len(self._live)

    @property
    def group_count(self) -> int:
        return len(self._members)

    def changed(self, ids: Collection[int], rows: Rows) -> Matrix:
        """Return the matrix in which some rows were written or deleted.

        Args:
            ids: Ids of the rows that changed.
            rows: Those of them that are there now, as they are now.
        """
        live_ids = self.storage.ids[self._live]
        kept = self._live[~np.isin(live_ids, np.fromiter(ids, np.int64, len(ids)))]
        storage = self.storage
        with storage.lock:
            if storage.has_room(len(rows.ids)) and not self._is_mostly_dead(kept):
                added = storage.add(rows)
                live = np.concatenate([kept, np.arange(added.start, added.stop)])
                return Matrix(storage, _by_group(storage, live))
        storage = Storage(self.storage.dimensions, room_for(len(kept) + len(rows.ids)))
        storage.add_from(self.storage, kept)
        storage.add(rows)
        return Matrix(storage, _by_group(storage, np.arange(storage.used)))

    def _is_mostly_dead(self, kept: Ints) -> bool:
        return len(kept) < self.storage.used * (1 - MOST_DEAD)

    def nearest(self, vector: bytes, wanted: int, keys: Iterable[Key] | None = None) -> Found:
        """Return the groups whose nearest row is nearest to a vector, by cosine.

        Args:
            vector: The encoded query.
            wanted: How many groups; ties with the last one come on top.
            keys: Choose among the groups of these keys only.
        """
        places = None if keys is None else self._places(keys)
        if wanted < 1 or not len(self._live) or (places is not None and not len(places)):
            return Found([], [])
        query = np.frombuffer(vector, dtype="<f4")
        scores, starts = self._scores(query, places)
        best = np.maximum.reduceat(scores, starts) if len(starts) < len(scores) else scores
        chosen = _largest(best, wanted)
        if places is not None:
            chosen = places[chosen]
        return self._measured(chosen, arithmetic.widened(query), wanted)

    def _places(self, keys: Iterable[Key]) -> Ints:
        """Return the places in ``_members`` of the groups of these keys."""
        group_of = self.storage.group_of
        known = [group for key in keys if (group := group_of.get(key)) is not None]
        groups = np.unique(np.array(known, dtype=np.int64))
        # The storage may have got groups after this matrix was made.
        places = self._place_of_group[groups[groups < len(self._place_of_group)]]
        return np.asarray(places[places >= 0])

    def _scores(self, query: arithmetic.Vectors, places: Ints | None) -> tuple[Scores, Ints]:
        """Return the rows' cosines, by group, and where each group starts in them."""
        unit = query / np.float32(np.sqrt(np.dot(query, query)) or 1.0)
        if places is None:
            live, starts = self._live, self._starts
        else:
            live, starts = self._rows_of(places)
        storage = self.storage
        if len(live) < self.used * SMALL_PART:
            return products(storage.vectors[live], unit) * storage.scales[live], starts
        scores = products(storage.vectors[: self.used], unit)
        scores *= storage.scales[: self.used]
        return (scores if places is None and self._is_whole else scores[live]), starts

    def _rows_of(self, places: Ints) -> tuple[Ints, Ints]:
        """Return the rows of the groups at these places, and where each group starts."""
        lengths = self._ends[places] - self._starts[places]
        starts = np.cumsum(lengths) - lengths
        within = np.arange(lengths.sum()) - np.repeat(starts, lengths)
        return self._live[np.repeat(self._starts[places], lengths) + within], starts

    def _measured(self, places: Ints, query: arithmetic.Numbers, wanted: int) -> Found:
        """Measure the groups exactly, and put them in order."""
        rows, starts = self._rows_of(places)
        storage = self.storage
        distances = arithmetic.cosine_distances(arithmetic.widened(storage.vectors[rows]), query)
        groups = np.repeat(np.arange(len(places)), np.diff(np.append(starts, len(rows))))
        # The first of each group: its nearest row, of equals the one written first.
        order = np.lexsort((storage.ids[rows], distances, groups))[starts]
        keys = (storage.keys[group] for group in storage.groups[rows[order]])
        ids = storage.ids[rows[order]].tolist()
        found = sorted(zip(distances[order].tolist(), keys, ids, strict=True))
        if len(found) > wanted:
            last = found[wanted - 1][0]
            found = [hit for hit in found if hit[0] <= last]
        return Found([hit[2] for hit in found], [hit[0] for hit in found])


def room_for(count: int) -> int:
    """Return the capacity that lets a storage of ``count`` rows take changes."""
    return count + count // 8 + 64


def _by_group(storage: Storage, rows: Ints) -> Ints:
    """Return the rows in the order of group and id."""
    groups, ids = storage.groups[rows], storage.ids[rows]
    step, rise = np.diff(groups), np.diff(ids)
    if ((step > 0) | ((step == 0) & (rise > 0))).all():
        return rows
    return rows[np.lexsort((ids, groups))]


def _largest(scores: Scores, wanted: int) -> Ints:
    """Return where the largest scores stand, with all that may belong to them."""
    if wanted >= len(scores):
        return np.arange(len(scores))
    cut = len(scores) - wanted
    last = np.partition(scores, cut)[cut]
    return np.flatnonzero(scores >= last - TOLERANCE)
