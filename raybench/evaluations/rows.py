"""Rows: from dictionaries to record batches whose schema says what may be missing."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

__all__ = ["NOT_FINITE", "empty_row", "to_record_batch"]

NOT_FINITE = "the model's answer to a perturbed copy was not finite"


def empty_row(sample_id: str, source: str, error: str) -> dict[str, Any]:
    """Return the row of a sample that could not be scored: unscored, never zero."""
    return {"sample_id": sample_id, "source": source, "status": "error", "error": error}


def to_record_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Return `rows` under `schema`; a column a row lacks is null.

    In a fixed-size list the elements are null instead of the list: pyarrow writes null lists of
    fixed size to Parquet in a form that it cannot read back.

    Raises:
        ValueError: a row with a column that the schema does not know.
    """
    known = set(schema.names)
    for row in rows:
        assert set(row) <= known, f"columns {sorted(set(row) - known)} are not in the schema"
    columns = [_column([row.get(field.name) for row in rows], field.type) for field in schema]
    return pa.record_batch(columns, schema=schema)


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    absent = [None] * kind.list_size if pa.types.is_fixed_size_list(kind) else None
    plain = [
        value.tolist() if isinstance(value, np.ndarray) else absent if value is None else value
        for value in values
    ]
    return pa.array(plain, type=kind)
