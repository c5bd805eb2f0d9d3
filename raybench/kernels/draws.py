"""Random draws keyed by (seed, purpose, sample id): the same bits for any batch, shard or worker.

    >>> bits(0, "masks", "test/17", (1000, 49)).shape
    (1000, 49)

Every stream is a Philox counter-based generator whose 128-bit key is a hash of what the draw is
for, so nothing depends on the order in which samples are visited (spec 00 section 0.4 rule 5).
"""

import hashlib

import numpy as np

__all__ = ["bits", "key_words", "keyed_int", "stream"]


def key_words(seed: int, purpose: str, sample_id: str) -> np.ndarray:
    """Return the key [2] uint64 of one purpose and one sample: half of a SHA-256."""
    text = f"raybench|{seed}|{purpose}|{sample_id}".encode()
    return np.frombuffer(hashlib.sha256(text).digest()[:16], dtype="<u8")


def stream(seed: int, purpose: str, sample_id: str) -> np.random.Generator:
    """Return the generator for one purpose and one sample; it shares no bits with any other."""
    return np.random.Generator(np.random.Philox(key=key_words(seed, purpose, sample_id)))


def bits(seed: int, purpose: str, sample_id: str, shape: tuple[int, int]) -> np.ndarray:
    """Return fair coin tosses [rows, columns] bool.

    Raw Philox words are used, whose values NumPy guarantees, rather than a distribution method,
    whose stream may change between releases.
    """
    count = shape[0] * shape[1]
    words = np.random.Philox(key=key_words(seed, purpose, sample_id)).random_raw((count + 63) // 64)
    tosses = np.unpackbits(words.astype("<u8").view(np.uint8), count=count)
    return tosses.reshape(shape).astype(bool)


def keyed_int(seed: int, purpose: str, sample_id: str, below: int) -> int:
    """Return an integer in [0, below)."""
    return int(key_words(seed, purpose, sample_id)[0] % np.uint64(below))
