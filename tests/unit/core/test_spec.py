import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybench.core.errors import SpecError, near_miss
from raybench.core.keys import canonical_json, digest, slug
from raybench.core.spec import Spec, boolean, parse

TEXT = st.text(string.printable.strip(), min_size=1, max_size=30)
NAMES = st.text(string.ascii_lowercase, min_size=1, max_size=8)


@given(NAMES, st.one_of(st.just(""), TEXT), st.dictionaries(NAMES, TEXT, max_size=4))
def test_canonical_text_parses_back_to_the_same_spec(
    scheme: str, rest: str, options: dict[str, str]
) -> None:
    spec = Spec(scheme, rest, tuple(sorted(options.items())))
    assert parse(spec.canonical()) == spec
    assert parse(spec.canonical()).canonical() == spec.canonical()


def test_two_spellings_are_one_key() -> None:
    assert parse("mnist?n=10&split=test") == parse(" mnist?split=test&n=10 ")
    assert parse("imagenet:s3://bucket/val?n=1").rest == "s3://bucket/val"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a spec"),
        (":rest", "is not a spec"),
        ("a b:c", "is not a spec"),
        ("mnist?n", "expected option=value"),
        ("mnist?=3", "expected option=value"),
        ("mnist?n=1&n=2", "given twice"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse(text)


def test_options_are_converted_and_unknown_ones_get_near_misses() -> None:
    spec = parse("digits?n=5&shuffle=yes")
    assert spec.read_options({"n": int, "shuffle": boolean}) == {"n": 5, "shuffle": True}
    with pytest.raises(SpecError, match="did you mean shuffle"):
        parse("digits?shufle=yes").read_options({"shuffle": boolean})
    with pytest.raises(SpecError, match="expected true or false"):
        parse("digits?shuffle=maybe").read_options({"shuffle": boolean})


def test_with_options_sets_and_removes() -> None:
    assert parse("a?x=1").with_options(y=2, x=None).canonical() == "a?y=2"


def test_keys_do_not_depend_on_order_and_refuse_nan() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest([1]) != digest(["1"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


@given(st.text(max_size=80))
def test_slugs_are_safe_file_names(text: str) -> None:
    piece = slug(text)
    assert piece
    assert piece not in {".", ".."}
    assert not set(piece) - set(string.ascii_letters + string.digits + ".-")
    assert not piece.startswith(("-", "."))


def test_near_miss_lists_what_exists() -> None:
    assert near_miss("pdg", ["pgd", "fgsm"]) == "; did you mean pgd? (known: fgsm, pgd)"
