"""Whatever way an API says it, the same scores and labels come out; what is odd is refused."""

from typing import Any

import numpy as np
import pytest

from raybench.models.http_answers import AnswerReader
from raybench.models.http_client import Malformed, NotFinite

READER = AnswerReader(classes=3)
NAMED = AnswerReader(classes=3, names=("cat", "dog", "7"))
EXPECTED = np.array([[0.25, 0.5, 0.25], [0.125, 0.125, 0.75]])


@pytest.mark.parametrize(
    "values",
    [
        EXPECTED,
        EXPECTED.astype(np.float32),
        EXPECTED.tolist(),
        [{"0": 0.25, "1": 0.5, "2": 0.25}, {"2": 0.75, "0": 0.125, "1": 0.125}],
        [[["0", 0.25], ["1", 0.5], ["2", 0.25]], [[2, 0.75], [0, 0.125], [1.0, 0.125]]],
        [
            [{"label": k, "score": float(v)} for k, v in enumerate(row)]
            for row in EXPECTED
        ],
    ],
)  # fmt: skip
def test_all_scores_in_every_form(values: Any) -> None:
    np.testing.assert_array_equal(READER.scores(values, 2), EXPECTED)
    np.testing.assert_array_equal(READER.labels(values, 2), [1, 2])


def test_classes_by_name_and_keys_of_its_own() -> None:
    reader = AnswerReader(classes=3, names=("cat", "dog", "7"), label="class", score="p")
    row = [{"class": "7", "p": 0.25}, {"class": "dog", "p": 0.5}, {"class": "cat", "p": 0.25}]
    np.testing.assert_array_equal(reader.scores([row], 1), EXPECTED[:1])
    found = NAMED.scores([{"cat": 0.25, "7": 0.25, "dog": 0.5}], 1)
    np.testing.assert_array_equal(found, EXPECTED[:1])


def test_topk_spreads_what_is_left_over_the_others() -> None:
    reader = AnswerReader(classes=5, topk=2)
    found = reader.scores([{"3": 0.6, "0": 0.25}, {"1": 1.0}], 2)
    np.testing.assert_allclose(found, [[0.25, 0.05, 0.05, 0.6, 0.05], [0, 1, 0, 0, 0]])
    np.testing.assert_allclose(found.sum(1), 1.0)
    np.testing.assert_array_equal(reader.labels([{"3": 0.6, "0": 0.25}], 1), [3])


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"3": 0.3, "0": 0.1}, "cannot be the likeliest"),
        ({"3": 0.9, "0": 0.3}, "more than one"),
        ({"3": 0.5, "0": 0.3, "1": 0.2}, "topk=2"),
        ({"3": 0.5, "x": 0.5}, "labels= names the classes"),
    ],
)
def test_topk_that_cannot_be_is_refused(told: dict[str, float], said: str) -> None:
    with pytest.raises(Malformed, match=said):
        AnswerReader(classes=5, topk=2).scores([told], 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 0], [1, 0]),
        ([1.0, 2.0], [1, 2]),
        (["1", "2"], [1, 2]),
        ([[1], [2]], [1, 2]),
        (np.array([[2], [0]]), [2, 0]),
        ([{"label": 2}, {"label": "1", "score": 0.9}], [2, 1]),
        ([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]], [0, 2]),
    ],
)
def test_labels_in_every_form(values: Any, expected: list[int]) -> None:
    found = READER.labels(values, 2)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, expected)


def test_labels_by_name() -> None:
    np.testing.assert_array_equal(NAMED.labels(["dog", "7", "cat"], 3), [1, 2, 0])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (None, "expected a list about 1 images"),
        ({"scores": [[1, 0, 0]]}, "expected a list"),
        ([], "about 0 images, 1 were asked about"),
        ([[0.5, 0.5]], "2 scores for an image, expected 3"),
        (np.zeros((1, 4)), r"shape \[4\]"),
        ([[0.5, 0.5, "0"]], "expected 3 numbers"),
        ([0.5], "expected 3 numbers"),
        ([{"0": 0.5, "1": 0.5}], "topk= says how many"),
        ([{"0": 0.5, "1": 0.5, "01": 0.0}], "one number for each class"),
        ([[True, False, False]], "expected 3 numbers"),
        ([{"0": 0.5, "1": 0.5, "4": 0.0}], "no number of 0 to 2"),
        ([[0.5, 0.5, 0.5]], "sum to 1.5.*output=logits"),
        ([[1.5, -0.5, 0.0]], "lie in -0.5 to 1.5"),
        ([[0.333, 0.333, 0.333]], "renormalise=true"),
    ],
)
def test_odd_scores_are_refused(values: Any, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        READER.scores(values, 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["cat"], "labels= names the classes"),
        ([3], "no number of 0 to 2"),
        ([-1], "no number"),
        ([1.5], "no number"),
        ([True], "no number"),
        ([None], "no number"),
        ([[float("nan"), 1.0, 2.0]], "not finite"),
    ],
)
def test_odd_labels_are_refused(values: Any, said: str) -> None:
    with pytest.raises(Malformed, match=said):
        READER.labels(values, 1)


def test_scores_that_are_not_finite_are_told_apart() -> None:
    for bad in (float("nan"), float("inf"), None):
        with pytest.raises(NotFinite) as caught:
            READER.scores([[0.2, 0.3, 0.5], [0.5, 0.5, bad]], 2)
        assert caught.value.values.shape == (2, 3)
        np.testing.assert_array_equal(caught.value.values[0], [0.2, 0.3, 0.5])


def test_rounded_probabilities_are_mended_only_where_asked() -> None:
    reader = AnswerReader(classes=3, renormalise=True)
    found = reader.scores([[0.33, 0.33, 0.33]], 1)
    np.testing.assert_allclose(found, [[1 / 3, 1 / 3, 1 / 3]])
    with pytest.raises(Malformed, match=r"sum to 0\.9"):
        reader.scores([[0.3, 0.3, 0.3]], 1)


def test_logits_are_taken_as_they_are() -> None:
    reader = AnswerReader(classes=3, output="logits")
    np.testing.assert_array_equal(reader.scores([[-7.0, 0.0, 80.0]], 1), [[-7.0, 0.0, 80.0]])
    np.testing.assert_array_equal(reader.labels([[-7.0, 0.0, 80.0]], 1), [2])
