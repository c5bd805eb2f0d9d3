import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.core.catalog import DATASETS, open_dataset
from raybench.core.errors import SpecError
from raybench.core.spec import parse
from raybench.data.selection import fingerprint, path_of, pick, respell

IDS = [f"test/{i}" for i in range(50)]


def test_without_a_seed_the_first_in_source_order_are_taken() -> None:
    assert pick(IDS, n=3) == [0, 1, 2]
    assert pick(IDS) == list(range(50))
    assert pick(IDS, n=1000) == list(range(50))


def test_a_seed_orders_by_the_documented_hash() -> None:
    expected = sorted(range(50), key=lambda i: hashlib.sha256(f"7|{IDS[i]}".encode()).hexdigest())
    assert pick(IDS, sample_seed=7) == expected
    assert pick(IDS, sample_seed=8) != expected


@given(st.lists(st.text(), unique=True, max_size=30), st.integers(0, 40), st.integers(1, 40))
def test_a_smaller_selection_is_the_beginning_of_a_larger_one(
    ids: list[str], seed: int, n: int
) -> None:
    whole = pick(ids, sample_seed=seed)
    assert sorted(whole) == list(range(len(ids)))
    assert pick(ids, n=n, sample_seed=seed) == whole[:n]


@given(st.permutations(IDS), st.integers(0, 40))
def test_a_seeded_selection_does_not_depend_on_source_order(order: list[str], seed: int) -> None:
    chosen = [order[row] for row in pick(order, n=10, sample_seed=seed)]
    assert chosen == [IDS[row] for row in pick(IDS, n=10, sample_seed=seed)]


def test_the_canonical_spec_leaves_defaults_out_and_parses_back() -> None:
    spec = parse("folder:a b?n=007&resize=224")
    text = respell(spec, {"n": 7, "resize": "224", "x": None}, rest="a b", total=50)
    assert text == "folder:a b?n=7&resize=224"
    assert parse(text).canonical() == text
    assert respell(spec, {"n": 50}, rest="a", total=50) == "folder:a"
    assert respell(spec, {"n": 51, "sample_seed": 0}, total=50) == "folder?sample_seed=0"


def test_path_or_root_but_not_both() -> None:
    assert path_of(parse("folder:a/b/"), {}) == "a/b"
    assert path_of(parse("folder?root=/"), {"root": "/"}) == "/"
    with pytest.raises(SpecError, match="both a path and root="):
        path_of(parse("folder:a?root=b"), {"root": "b"})
    with pytest.raises(SpecError, match=r"such|as in folder:/data/images, found none"):
        path_of(parse("folder"), {})


def test_the_fingerprint_sees_content_ids_and_preprocessing() -> None:
    base = fingerprint("c", ["a"], "p")
    others = [
        fingerprint("d", ["a"], "p"),
        fingerprint("c", ["b"], "p"),
        fingerprint("c", ["a"], "q"),
    ]
    assert base == fingerprint("c", ("a",), "p")
    assert len({base, *others}) == 4


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_refuses_an_unknown_option_with_a_near_miss(name: str) -> None:
    with pytest.raises(SpecError, match="did you mean sample_seed"):
        open_dataset(f"{name}?sample_sed=1")


@pytest.mark.parametrize("name", DATASETS)
@pytest.mark.parametrize("option", ["n=0", "n=-1", "n=ten", "n=1.5", "sample_seed=-1", "n=²"])
def test_every_dataset_refuses_an_impossible_selection(name: str, option: str) -> None:
    with pytest.raises(SpecError, match="expected a whole number"):
        open_dataset(f"{name}?{option}")
