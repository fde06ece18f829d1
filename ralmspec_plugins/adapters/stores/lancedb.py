"""LanceDB, over the table that a host holds: many queries in one scan, and what is sure about them.

A table without an index on its vectors is scanned, and a list of queries shares
the scan: 16 of them took 0.15 times as long as one by one (20,000 rows of 384).
The rows of all queries come in one table, with the column `query_index`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ralmspec_plugins.adapters.stores.faiss import MARGIN, Candidates
from ralmspec_plugins.retrieval.ranking import Vectors

QUERY = "query_index"
DISTANCE = "_distance"


def scans(table: Any, column: str) -> bool:
    """Say whether a search of this column reads every row: float32 vectors, and no index."""
    kind = table.schema.field(column).type
    if str(getattr(kind, "value_type", "")) != "float" or getattr(kind, "list_size", 0) < 1:
        return False
    return not any(column in index.columns for index in table.list_indices())


def batch_rows(
    table: Any,
    column: str,
    vectors: Sequence[Any],
    limit: int,
    where: str | None,
    prefilter: bool,
    metric: str | None,
) -> list[Any]:
    """Search all vectors at once; give the rows of each query, best first, as Arrow tables."""
    query = table.search([list(vector) for vector in vectors], vector_column_name=column)
    query = query.limit(limit)
    if metric:
        query = query.metric(metric)
    rows = query.where(where, prefilter=prefilter).to_arrow()
    if QUERY not in rows.column_names:
        return [rows]
    owners = rows[QUERY].to_numpy()
    rows = rows.drop_columns([QUERY])
    return [rows.take(np.flatnonzero(owners == at)) for at in range(len(vectors))]


def vectors_of(rows: Any, column: str) -> Vectors:
    """Give the vectors of some rows [rows, dimension]."""
    values = rows[column].combine_chunks()
    dimension = values.type.list_size
    flat: Vectors = values.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dimension)


def candidates(rows: Any, column: str, k: int, limit: int) -> Candidates:
    """Give as many of the rows that an L2 scan for `limit` found as it takes to certify k."""
    count = min(with_margin(k), len(rows))
    if len(rows) < limit and count == len(rows):
        return Candidates(vectors_of(rows, column), None)
    worst = -float(rows[DISTANCE][count - 1].as_py())
    return Candidates(vectors_of(rows.slice(0, count), column), worst)


def with_margin(k: int) -> int:
    """Say how many rows to search for, so that the first k can be certified."""
    return k + MARGIN
