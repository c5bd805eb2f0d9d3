"""What is known of models from earlier runs, so that a refresh need not load them again.

    known = Known.read(path)
    info = known.recall(spec, about)          # None: it must be loaded
    with files_read() as files: ...load...
    known.enter(spec, about, info, notes, before)

The rule. A record holds the SHA-256 of every file that the model was made of: its weights, the
source of its classes outside the well-known libraries, and of the package of its factory. It is
used again only if every one of them has these bytes still. A file is taken to be unchanged without
reading it where size, modification time and change time are all those of the moment it was hashed,
and that moment was over two seconds after both times: a program can set a modification time back,
the change time only by turning back the machine's clock. Anything else is hashed. What a factory
reads besides (a file of settings) is not seen: name it with ``files``, or use ``rehash=True``,
which recalls nothing.

Never recalled: models whose files are not known (``python:`` without ``files``; what the package
trains itself), and models recorded by other versions of the libraries. A remote model has no files,
and is what its spec says.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from raybench.core.keys import digest
from raybench.core.spec import parse
from raybench.core.types import ModelInfo
from raybench.models.cache import write_whole
from raybench.models.fingerprints import LIBRARIES, file_sha256

__all__ = ["Known", "Recalled", "Stamp", "model_files"]

_SCHEMA = 1
_SETTLED_NS = 2_000_000_000
_REMOTE = frozenset({"http", "https"})
# Loading them is cheap, and decides by more than files (the data they were trained on).
_OURS = frozenset({"zoo", "control"})
_VERSIONS = ("raybench", "torch", "torchvision", "timm", "robustbench", "onnxruntime")
_INFO: TypeAdapter[ModelInfo] = TypeAdapter(ModelInfo)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What tells that a file was not touched, and the digest of its bytes when that was seen.

    Times are nanoseconds; `seen_ns` is when hashing began.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    seen_ns: int
    sha256: str

    def settled(self, path: Path) -> bool:
        """Whether the file at `path` is the one that was hashed; see the rule of the module."""
        try:
            found = path.stat()
        except OSError:
            return False
        now = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        latest = max(self.mtime_ns, self.ctime_ns)
        return now == (self.size, self.mtime_ns, self.ctime_ns) and (
            latest + _SETTLED_NS < self.seen_ns
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """A model as it was found: what is known of it, and what the user was told."""

    info: ModelInfo
    notes: tuple[str, ...]


@dataclass(slots=True)
class Known:
    """The records of one output folder. With `rehash` they are written, never used.

    `loaded` counts the models that had to be loaded in this run.
    """

    path: Path
    rehash: bool = False
    loaded: int = 0
    _records: dict[str, dict[str, Any]] = field(default_factory=dict)
    _stamps: dict[str, Stamp] = field(default_factory=dict)
    _changed: bool = False

    @classmethod
    def read(cls, path: Path, *, rehash: bool = False) -> "Known":
        """Return the records in `path`; none where it is absent, damaged or of another version.

        They are a memory and no result: what is lost is found out again.
        """
        known = cls(path, rehash)
        try:
            content = json.loads(path.read_bytes())
            if content["schema"] == _SCHEMA and content["libraries"] == _libraries():
                known._records = dict(content["models"])
                known._stamps = {name: Stamp(**one) for name, one in content["files"].items()}
        except (OSError, ValueError, KeyError, TypeError):
            known._records, known._stamps = {}, {}
        return known

    def save(self) -> None:
        """Write the records, if any has changed. Files that no record names are left out."""
        if not self._changed:
            return
        named = {name for record in self._records.values() for name in record["files"]}
        content = {
            "schema": _SCHEMA,
            "libraries": _libraries(),
            "models": self._records,
            "files": {name: asdict(one) for name, one in self._stamps.items() if name in named},
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, sort_keys=True, indent=1)
        write_whole(self.path, lambda part: part.write_text(text, encoding="utf-8"))
        self._changed = False

    def recall(self, spec: str, about: str, extra: Sequence[Path] = ()) -> Recalled | None:
        """Return what is known of the model `spec` over the images `about`, or None.

        Args:
            spec: the model.
            about: digest of the images it was tried on.
            extra: files that it is said to depend on.
        """
        record = self._records.get(_key(spec, about))
        scheme = parse(spec).scheme
        if record is None or scheme in _OURS or self.rehash:
            return None
        files = record["files"]
        if not files and scheme not in _REMOTE:
            return None
        if scheme == "python" and not extra:
            return None
        if not {str(path.absolute()) for path in extra} <= set(files):
            return None
        if any(self._sha256(name) != sha256 for name, sha256 in files.items()):
            return None
        try:
            info = _INFO.validate_python(record["info"])
        except ValidationError:
            return None
        return Recalled(info=info, notes=tuple(record["notes"]))

    def enter(
        self,
        spec: str,
        about: str,
        info: ModelInfo,
        notes: Sequence[str],
        files: Sequence[Path],
        before_ns: int,
    ) -> None:
        """Record a model that was loaded from `files`, none of which may have changed since.

        Args:
            spec: the model.
            about: digest of the images it was tried on.
            info: what was found.
            notes: what the user was told.
            files: what it was made of.
            before_ns: when loading began; a file touched later is not what was loaded for sure,
                so that nothing is recorded.
        """
        self.loaded += 1
        names = sorted({str(path.absolute()) for path in files if path.is_file()})
        shas = {name: self._sha256(name) for name in names}
        stamps = [self._stamps[name] for name in names if name in self._stamps]
        if None in shas.values() or any(
            max(stamp.mtime_ns, stamp.ctime_ns) >= before_ns for stamp in stamps
        ):
            return
        self._records[_key(spec, about)] = {
            "info": _INFO.dump_python(info, mode="json"),
            "notes": list(notes),
            "files": shas,
        }
        self._changed = True

    def _sha256(self, name: str) -> str | None:
        """Return the digest of a file's bytes, read only where its stamp does not vouch for it."""
        path = Path(name)
        stamp = self._stamps.get(name)
        if stamp is not None and not self.rehash and stamp.settled(path):
            return stamp.sha256
        try:
            before, seen_ns = path.stat(), time.time_ns()
            sha256 = file_sha256(path)
            after = path.stat()
        except OSError:
            return None
        times = (before.st_size, before.st_mtime_ns, before.st_ctime_ns)
        if times != (after.st_size, after.st_mtime_ns, after.st_ctime_ns):
            return None
        self._stamps[name] = Stamp(
            size=times[0], mtime_ns=times[1], ctime_ns=times[2], seen_ns=seen_ns, sha256=sha256
        )
        self._changed = True
        return sha256


def model_files(spec: str, noted: Sequence[Path]) -> list[Path]:
    """Return the files a model was made of: those its loader noted, and its factory's package.

    Every module of the factory's package that is loaded counts: a network may be put together from
    all of them. Libraries are known by their version.
    """
    parsed = parse(spec)
    target = parsed.get("arch") if parsed.scheme == "file" else None
    if parsed.scheme == "python":
        target = parsed.rest
    files = list(noted)
    package = (target or "").partition(":")[0].partition(".")[0]
    if package and package not in LIBRARIES:
        for name, module in list(sys.modules.items()):
            origin = getattr(module, "__file__", None)
            if origin and (name == package or name.startswith(f"{package}.")):
                files.append(Path(origin))
    return files


def _key(spec: str, about: str) -> str:
    return digest([spec, about])


def _libraries() -> dict[str, str]:
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in _VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found
