"""What torch saved, looked at before it is loaded: how much memory its records claim.

    refuse_claims(Path("net.pt"), "file:net.pt")

torch's loader checks that a record has the size its tensor declares, but unpacks any record that
is compressed, and lets a pickle ask for a ``bytearray`` of any length. So the sizes in the
directory are added up first, and the pickle's instructions read, not followed.
"""

import io
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from raybench.core.errors import SpecError
from raybench.core.limits import refuse_bomb

__all__ = ["refuse_claims", "refuse_declared"]

_ZIP = b"PK\x03\x04"
# In the old format: a magic number, a version, the system, the object, the names of its storages.
_OLD_PICKLES = 5
# The length of a bytearray is a number in the pickle, and its bytes are written at once.
_CLAIMING = ("builtins bytearray", "__builtin__ bytearray")


def refuse_claims(path: Path, what: object) -> None:
    """Refuse a file of torch's (.pt of either format, TorchScript, .pt2) that claims too much.

    What is no such file passes: its loader says so better.

    Raises:
        SpecError: names the file, what it claims, the limit, and how to raise it.
        OSError: it cannot be read.
    """
    with path.open("rb") as stream:
        claimed = sum(_sizes(stream, path, what))
    refuse_bomb(what, path.name, claimed=claimed, stored=path.stat().st_size)


def refuse_declared(saved: Any, path: Path, what: object) -> None:
    """Refuse tensors in `saved`, loaded from `path`, that are larger than what the file holds.

    A tensor may repeat one value without holding it more than once; nothing is spent until it is
    copied, which the network that takes it does.

    Raises:
        SpecError: as `refuse_claims`.
    """
    claims: dict[int, int] = {}
    for tensor in _tensors(saved):
        whole = tensor.layout == torch.strided and not tensor.is_meta
        storage = tensor.untyped_storage() if whole else None
        key = storage.data_ptr() if storage else id(tensor)
        bytes_of_it = max(
            tensor.numel() * tensor.element_size(), storage.nbytes() if storage else 0
        )
        claims[key] = max(claims.get(key, 0), bytes_of_it)
    refuse_bomb(what, path.name, claimed=sum(claims.values()), stored=path.stat().st_size)


def _tensors(saved: Any) -> Iterator[Tensor]:
    """Yield the tensors where state dictionaries keep them: at the top, or one level below."""
    for value in saved.values() if isinstance(saved, Mapping) else [saved]:
        for inner in value.values() if isinstance(value, Mapping) else [value]:
            if isinstance(inner, Tensor):
                yield inner


def _sizes(stream: IO[bytes], path: Path, what: object, *, inside: str = "") -> Iterator[int]:
    """Yield the unpacked sizes of the records in an archive, and of those in the files within."""
    if stream.read(len(_ZIP)) != _ZIP:
        stream.seek(0)
        _refuse_allocations(stream, path, what, pickles=_OLD_PICKLES)
    # Both readers of archives are asked, since they could be made to see different things.
    plain: list[int] = []
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            plain = [info.file_size for info in archive.infolist()]
    stream.seek(0)
    try:
        reader = torch._C.PyTorchFileReader(stream)
    except (RuntimeError, OSError):
        # Not one of torch's, or shorter than any archive.
        yield sum(plain)
        return
    records = {name: reader.get_record_size(name) for name in reader.get_all_records()}
    total = max(sum(plain), sum(records.values()))
    # Before any record is read.
    refuse_bomb(what, path.name, claimed=total, stored=path.stat().st_size)
    yield total
    for name in records:
        if name == "data.pkl":
            _refuse_allocations(io.BytesIO(reader.get_record(name)), path, what, pickles=1)
        elif not inside and name.endswith(".pt"):
            # Programs of torch.export keep their example inputs, and once kept weights, so.
            yield from _sizes(io.BytesIO(reader.get_record(name)), path, what, inside=name)


def _refuse_allocations(stream: IO[bytes], path: Path, what: object, *, pickles: int) -> None:
    """Refuse a pickle that makes a bytearray; nothing of it is executed."""
    try:
        for _ in range(pickles):
            for opcode, argument, _ in pickletools.genops(stream):
                if opcode.name == "GLOBAL" and argument in _CLAIMING:
                    raise SpecError(
                        f"{what}: {path.name} is refused: it makes a bytearray, which can claim "
                        "any amount of memory and which no weights need; save the weights alone: "
                        "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')"
                    )
    except SpecError:
        raise
    except (ValueError, UnicodeDecodeError, OverflowError, EOFError, MemoryError):
        # No pickle, or a damaged one (a text of 2**62 bytes, say); torch says so better.
        return
