import pytest
import torch

from raybench.kernels.batches import in_batches


@pytest.mark.parametrize("batch", [1, 3, 10, 64])
def test_slices_cover_the_rows_in_order(batch: int) -> None:
    parts = in_batches(10, batch, lambda part: list(range(10))[part])
    assert [row for part in parts for row in part] == list(range(10))
    assert max(map(len, parts)) == min(batch, 10)
    assert in_batches(0, batch, lambda part: part) == []


def test_what_does_not_fit_is_halved_from_there_on() -> None:
    asked = []

    def ask(part: slice) -> int:
        asked.append(part.stop - part.start)
        if asked[-1] > 3 or (part.start >= 6 and asked[-1] > 1):
            raise torch.OutOfMemoryError("does not fit")
        return asked[-1]

    assert in_batches(8, 8, ask) == [2, 2, 2, 1, 1]
    assert asked == [8, 4, 2, 2, 2, 2, 1, 1]


def test_a_single_row_that_does_not_fit_is_an_error() -> None:
    def never(part: slice) -> int:
        raise torch.OutOfMemoryError("never fits")

    with pytest.raises(torch.OutOfMemoryError, match="never fits"):
        in_batches(3, 4, never)
