import numpy as np
import pytest
import torch

from raybench.kernels.counter import normal, philox, sample_keys, signs, uniform, words

# Known answers of philox4x32-10 published with Random123 (kat_vectors).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, answer) -> None:
    drawn = philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert drawn.tolist() == [int(word, 16) for word in answer.split()]


def keys_of(*ids: str, seed: int = 0, purpose: str = "test") -> torch.Tensor:
    return torch.from_numpy(sample_keys(seed, purpose, ids))


def test_a_draw_depends_on_its_own_key_step_and_position_alone() -> None:
    together = words(keys_of("a", "b", "c"), 5, 100)
    assert torch.equal(together[1:2], words(keys_of("b"), 5, 100))
    assert torch.equal(together[:, :10], words(keys_of("a", "b", "c"), 5, 10))
    others = [
        words(keys_of("b"), 6, 100),
        words(keys_of("b"), 5 + 2**32, 100),
        words(keys_of("b", seed=1), 5, 100),
        words(keys_of("b", purpose="other"), 5, 100),
    ]
    for other in others:
        assert (other == together[1:2]).float().mean() < 0.05


def test_distributions() -> None:
    keys, count = keys_of("a"), 200_000
    even = uniform(keys, 0, count)[0]
    assert even.min() > 0
    assert even.max() < 1
    histogram = torch.histc(even.float(), bins=10, min=0, max=1) / count
    assert torch.allclose(histogram, torch.full((10,), 0.1), atol=0.004)
    bell = normal(keys, 0, count)[0].numpy()
    assert bell.mean() == pytest.approx(0, abs=0.01)
    assert bell.std() == pytest.approx(1, abs=0.01)
    assert (np.abs(bell) < 1.96).mean() == pytest.approx(0.95, abs=0.003)
    tosses = signs(keys, 0, count)[0]
    assert set(tosses.tolist()) == {-1.0, 1.0}
    assert float(tosses.mean()) == pytest.approx(0, abs=0.01)
    assert float((tosses[1:] * tosses[:-1]).mean()) == pytest.approx(0, abs=0.01)
