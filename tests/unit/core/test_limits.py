import pytest

from raybench.core import limits
from raybench.core.errors import InputError, SpecError
from raybench.core.limits import max_bytes, refuse_bomb, shown

MIB, GIB = 2**20, 2**30


@pytest.mark.parametrize(
    ("claimed", "stored"),
    [
        (8 * GIB, GIB),  # the limit itself
        (20 * GIB, 20 * GIB),  # what lies on disk may be read
        (256 * MIB, 1),  # little enough to be no harm
        (100 * 10 * MIB, 10 * MIB),
    ],
)
def test_what_is_within_the_limits_passes(claimed: int, stored: int) -> None:
    refuse_bomb("x", "file", claimed=claimed, stored=stored)


def test_more_than_the_limit_is_refused_with_the_number_that_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(SpecError) as caught:
        refuse_bomb("npz:x.npz", "x.npz", claimed=8 * GIB + 1, stored=GIB)
    assert "npz:x.npz: x.npz has 1.0 GiB and would take 8.0 GiB unpacked" in str(caught.value)
    assert "more than the limit of 8.0 GiB" in str(caught.value)
    assert "set RAYBENCH_MAX_GIB=9 wherever" in str(caught.value)
    monkeypatch.setenv(limits.LIMIT, "9")
    refuse_bomb("npz:x.npz", "x.npz", claimed=8 * GIB + 1, stored=GIB)
    monkeypatch.setenv(limits.LIMIT, "0.5")
    with pytest.raises(SpecError, match=r"more than the limit of 512\.0 MiB"):
        refuse_bomb("npz:x.npz", "x.npz", claimed=513 * MIB, stored=400 * MIB)


def test_a_bomb_below_the_limit_is_refused_by_its_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.LIMIT, "1000")
    with pytest.raises(SpecError, match=r"100 times.*decompression bomb.*without compression"):
        refuse_bomb("x", "file", claimed=257 * MIB, stored=2 * MIB)


@pytest.mark.parametrize("given", ["many", "0", "-1", "nan", "inf", "8GiB"])
def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv(limits.LIMIT, given)
    with pytest.raises(InputError, match=rf"RAYBENCH_MAX_GIB={given} .*such as 16"):
        max_bytes()


def test_no_limit_set_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", " "):
        monkeypatch.setenv(limits.LIMIT, given)
        assert max_bytes() == limits.DEFAULT_GIB * GIB


def test_sizes_are_shown_as_people_read_them() -> None:
    assert [shown(size) for size in (0, 1023, 1024, 3 * MIB // 2, 5 * 1024 * GIB)] == [
        "0 bytes",
        "1023 bytes",
        "1.0 KiB",
        "1.5 MiB",
        "5120.0 GiB",
    ]
