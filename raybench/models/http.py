"""Models that are only reachable over HTTP: ``http://host:port/path?protocol=mlflow&...``.

    http://127.0.0.1:5000/invocations?protocol=mlflow&shape=1x8x8&classes=10
    https://triton.example.com/v2/models/resnet?protocol=v2&binary=true&version=7
    https://api.example.com/classify?protocol=json&template=api.yaml&shape=3x224x224&classes=1000

``docs/http.md`` explains every option. Access is labels or scores, or logits for an API that gives
them. Images are asked about in requests of at most ``batch`` images, cut in order from the batches
that an evaluation asks about, so that a request's images depend on neither retries, workers nor
what is kept. Answers are kept by the content of a whole request: a server may round otherwise
where an image has other neighbours, and a resume must find what was answered to the same question.

An API has no weights to hash. Its fingerprint is a digest of its address and of all that decides
what its answers mean (protocol, encoding, shape, classes, normalisation), and of ``version``, with
which the user states what is served there.
"""

import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing
from hashlib import sha256
from typing import final

import numpy as np
import torch
from torch import Tensor

from raybench.core.errors import AccessError, BudgetSpentError, SpecError
from raybench.core.keys import canonical_json
from raybench.core.spec import Spec
from raybench.core.types import Access, Model, ModelInfo
from raybench.models.http_client import Client, Settings
from raybench.models.http_ledger import Answers, Ledger, open_answers, open_ledger
from raybench.models.http_metadata import complete
from raybench.models.http_options import Asking, read_asking, read_settings
from raybench.models.torch_model import check_images, require, resolve_device

__all__ = ["HttpModel", "load", "spent"]

# An answer may have this much, and so much more for each score: digits, keys, and a server's chat.
_LEAST_ROOM = 1 << 20
_ROOM_A_SCORE = 512
_MOST_ROOM = 1 << 28


class _Reach:
    """What several views of one model share: connections, files, threads; closed with the last."""

    def __init__(self, client: Client, ledger: Ledger, answers: Answers | None, threads: int):
        self.client, self.ledger, self.answers = client, ledger, answers
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="raybench-http")
        weakref.finalize(self, _close, client, ledger, answers, self.threads)


def _close(
    client: Client, ledger: Ledger, answers: Answers | None, threads: ThreadPoolExecutor
) -> None:
    threads.shutdown(wait=True, cancel_futures=True)
    client.close()
    ledger.close()
    if answers is not None:
        answers.close()


@final
class HttpModel:
    """A classifier that answers over HTTP; see the module.

    `warnings` must be said beside its results. `paid` counts the images sent by this process.
    """

    __slots__ = ("_asking", "_draw", "_reach", "device", "info", "warnings")

    def __init__(
        self, info: ModelInfo, asking: Asking, reach: _Reach, *, device: str, draw: int = 0
    ) -> None:
        self.info = info
        self.device = device
        self.warnings = asking.warnings
        self._asking = asking
        self._reach = reach
        self._draw = draw

    @property
    def paid(self) -> int:
        """Images sent so far, tries that failed included."""
        return self._reach.ledger.paid

    def again(self) -> "HttpModel":
        """Return the model with a memory of its own: it is asked anew what was answered before.

        So a check sees whether answers change. What it answers is kept as well.
        """
        return HttpModel(
            self.info, self._asking, self._reach, device=self.device, draw=self._draw + 1
        )

    def labels(self, images: Tensor) -> Tensor:
        """Return the predicted classes [N] int64; ties go to the lower class."""
        answers = self._ask(images)
        labels = answers if answers.ndim == 1 else answers.argmax(1)
        return torch.from_numpy(labels).to(self.device)

    def probabilities(self, images: Tensor) -> Tensor:
        """Return class probabilities [N, K] float64: softmax, in float64, of an API's logits."""
        require(self.info, Access.SCORES, "probabilities")
        scores = torch.from_numpy(self._ask(images)).to(self.device)
        return scores.softmax(1) if self._asking.reader.output == "logits" else scores

    def logits(self, images: Tensor) -> Tensor:
        """Return logits [N, K] float32 without gradient."""
        require(self.info, Access.LOGITS, "logits")
        return torch.from_numpy(self._ask(images)).to(self.device, torch.float32)

    def activations(self, images: Tensor, layers: Sequence[str]) -> Mapping[str, Tensor]:
        """Raise AccessError: an API shows nothing between input and output."""
        require(self.info, Access.INTERNALS, "activations")
        raise AccessError(f"{self.info.name}: an API shows no activations")

    def _ask(self, images: Tensor) -> np.ndarray:
        """Return scores [N, K] float64, or labels [N] int64 where access is labels."""
        check_images(self.info, images)
        pixels = _as_sent(images.detach().cpu().numpy(), self._asking)
        size = self._asking.batch
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        if len(parts) == 1:
            return self._ask_part(parts[0])
        client = self._reach.client
        client.halt(False)
        asked = [self._reach.threads.submit(self._ask_part, part) for part in parts]
        try:
            wait(asked)  # all of them: what is answered is paid for, and kept, whatever else fails
        except BaseException:
            client.halt()  # Ctrl-C: no thread may hold up the end by trying on
            for each in asked:
                each.cancel()
            raise
        errors = [error for each in asked if (error := each.exception()) is not None]
        if errors:
            spent = [error for error in errors if isinstance(error, BudgetSpentError)]
            raise (spent or errors)[0]
        return np.concatenate([each.result() for each in asked])

    def _ask_part(self, pixels: np.ndarray) -> np.ndarray:
        """Return the answers to one request: those kept, else the server's."""
        asking, reach = self._asking, self._reach
        key = self._key(pixels)
        known = reach.answers.get(key) if reach.answers is not None else None
        if known is not None:
            return known
        body, headers = asking.protocol.encode(pixels)
        count, classes = len(pixels), self.info.num_classes
        labels_only = self.info.access < Access.SCORES
        judge = asking.reader.labels if labels_only else asking.reader.scores

        def read(answer: bytes, said: Mapping[str, str]) -> np.ndarray:
            return judge(asking.protocol.decode(answer, said), count)

        most = min(_MOST_ROOM, _LEAST_ROOM + _ROOM_A_SCORE * count * classes)
        values = reach.client.ask(
            body, headers, queries=count, most=most, read=read, target=asking.target
        )
        return values if reach.answers is None else reach.answers.keep(key, values)

    def _key(self, pixels: np.ndarray) -> bytes:
        """Return the digest of a question: which model, what kind of answer, which images."""
        kind = "labels" if self.info.access < Access.SCORES else "scores"
        head = [self.info.fingerprint, kind, self._draw, pixels.dtype.str, list(pixels.shape)]
        return sha256(canonical_json(head).encode() + pixels.tobytes()).digest()


def _as_sent(pixels: np.ndarray, asking: Asking) -> np.ndarray:
    """Return images [N, C, H, W] float32 in [0, 1] as the server gets them: normalised, or bytes.

    What is kept is kept under these, so that images the server cannot tell apart are one question.
    """
    if asking.eight_bit:
        return np.rint(pixels * 255.0).clip(0, 255).astype(np.uint8)
    if asking.mean:
        mean = np.array(asking.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.array(asking.std, np.float32).reshape(1, -1, 1, 1)
        return (pixels - mean) / std
    return pixels


def load(spec: Spec, *, device: str) -> Model:
    """Return the model at an address; the server is asked only for a v2 model's metadata.

    With a budget, the spec in the model's `info` names the ledger it is counted in: a worker that
    sees another one, on another machine's disk, refuses to work rather than count from nothing.

    Raises:
        SpecError: an option that is missing or wrong, an address that is refused, metadata that
            cannot be had, or another ledger than the spec names.
        StoreError: the ledger or the kept answers cannot be read or written.
    """
    resolve_device(device)
    address, settings = read_settings(spec)
    with ExitStack() as opened:
        ledger = open_ledger(address.url, spec.get("version"))
        opened.callback(ledger.close)
        spec = _with_ledger(spec, settings, ledger)
        client = Client(address, settings, ledger, what=spec.get("name") or address.url)
        opened.callback(client.close)
        spec = complete(spec, client, address)
        asking = read_asking(spec)
        answers = open_answers(address.url, asking.version) if asking.cache else None
        info = ModelInfo(
            spec=spec.canonical(),
            name=asking.name,
            access=asking.access,
            input_shape=asking.shape,
            num_classes=asking.reader.classes,
            fingerprint=asking.fingerprint,
            normalisation=_normalisation(asking),
            details=(
                ("address", address.url),
                ("version", asking.version or "not stated"),
                ("fingerprint of", "address, version and settings: an API shows no weights"),
            ),
        )
        opened.pop_all()  # from here on the model closes them
    return HttpModel(
        info, asking, _Reach(client, ledger, answers, settings.concurrency), device=device
    )


def spent(spec: Spec) -> tuple[int, int | None]:
    """Return the queries counted so far for the model of `spec`, and its budget, if it has one."""
    address, settings = read_settings(spec)
    with closing(open_ledger(address.url, spec.get("version"))) as ledger:
        return ledger.total, settings.budget


def _with_ledger(spec: Spec, settings: Settings, ledger: Ledger) -> Spec:
    """Return `spec` with the ledger that its budget is counted in; refuse another one."""
    named = spec.get("ledger")
    if settings.budget is None:
        return spec.with_options(ledger=None)
    if named is not None and named != ledger.id:
        raise SpecError(
            f"{spec}: its budget is counted in ledger {named}, but this machine's is {ledger.id}. "
            "Machines that share a budget need one cache folder: set RAYBENCH_CACHE to a shared "
            "folder on all of them. If the ledger was removed, leave out ledger= to count anew"
        )
    return spec.with_options(ledger=ledger.id)


def _normalisation(asking: Asking) -> str:
    if not asking.mean:
        return "none"
    mean, std = (",".join(map(repr, values)) for values in (asking.mean, asking.std))
    return f"mean {mean} std {std}"
