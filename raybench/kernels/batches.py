"""Many rows asked about in as large batches as the device's memory holds."""

from collections.abc import Callable
from typing import TypeVar

import torch

__all__ = ["in_batches"]

Answer = TypeVar("Answer")


def in_batches(rows: int, batch: int, ask: Callable[[slice], Answer]) -> list[Answer]:
    """Return ``ask(slice)`` of consecutive slices that cover `rows`, at most `batch` rows each.

    A batch that does not fit the device's memory is halved, for the rest of these rows only.

    Args:
        rows: M.
        batch: largest number of rows in one call.
        ask: makes and asks the rows of a slice.

    Raises:
        torch.OutOfMemoryError: a single row does not fit.
    """
    answers: list[Answer] = []
    start = 0
    while start < rows:
        try:
            answers.append(ask(slice(start, min(rows, start + batch))))
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch = max(1, batch // 2)
            torch.cuda.empty_cache()
            continue
        start += batch
    return answers
