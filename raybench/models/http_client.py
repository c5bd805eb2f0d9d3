"""Requests to one black-box model: paced, counted, tried again, and never more than allowed.

    client = Client(address, settings, ledger, what="digits@api")
    scores = client.ask(body, headers, queries=32, most=1 << 20, read=protocol_reader)

Every request is counted in the ledger before it is sent, tries that fail included: a server that
answers 500 may still have charged for it. Only where no connection came about is it taken back.
Answers are read up to a size, within a time, and `read` judges them: what is truncated, malformed
or of another shape is asked again like any other failure. Nothing here logs headers or bodies.
"""

import email.utils
import http.cookiejar
import logging
import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import numpy as np
import requests
import urllib3
from requests.adapters import HTTPAdapter

from raybench.core.errors import BudgetSpentError, OutputError, RunError, SpecError
from raybench.models.http_address import Address, is_public, resolve
from raybench.models.http_credentials import TOKEN, auth_header, credential, token_names
from raybench.models.http_ledger import LONGEST_WAIT_S, Ledger

__all__ = ["Client", "Malformed", "NotFinite", "Settings"]

_LONGEST_BACKOFF_S = 30.0
_PIECE = 1 << 16
_SHOWN = 300
_UNHEARD_TRIES = 4  # while nobody listens, or nothing of use was ever answered
_NOT_FINITE_TRIES = 2
_AGAIN = frozenset({408, 425, 429})  # and 5xx: states that pass
_log = logging.getLogger(__name__)

Answer = TypeVar("Answer")


class Malformed(Exception):  # noqa: N818 - never leaves the adapter
    """An answer that is not what the protocol promises; the text says in which way."""


class NotFinite(Malformed):
    """An answer of the right form with NaN or infinite scores in it: `values`."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__("the scores are not finite")
        self.values = values


class _Fault(Exception):  # noqa: N818
    """A try that failed in a way that may pass. `wait_s` is what the server asked for."""

    def __init__(self, text: str, *, sent: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(text)
        self.sent = sent
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is asked; nothing here changes an answer.

    Attributes:
        budget: queries that may ever be counted in the ledger; None for no limit.
        rps: requests a second over all processes; None for no limit.
        concurrency: requests in flight from this process.
        timeout_s: seconds to connect, and for the whole of an answer.
        retries: tries after the first one.
        backoff_s: the wait before the first retry; it doubles, up to 30 s, with jitter.
        private: loopback and private addresses may be asked.
        auth: how the credential is sent: "bearer", "basic", or the name of a header.
    """

    budget: int | None = None
    rps: float | None = None
    concurrency: int = 4
    timeout_s: float = 60.0
    retries: int = 8
    backoff_s: float = 0.5
    private: bool = False
    auth: str = "bearer"


class _Pinned(HTTPAdapter):
    """Connects to the IP address in the URL, and checks the certificate for the host behind it."""

    def __init__(self, host: str, connections: int) -> None:
        self._host = host
        super().__init__(pool_connections=2, pool_maxsize=connections, max_retries=0)

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        options |= {"assert_hostname": self._host, "server_hostname": self._host}
        super().init_poolmanager(*args, **options)


class Client:
    """Asks one address; its methods may be called by several threads."""

    def __init__(self, address: Address, settings: Settings, ledger: Ledger, *, what: str) -> None:
        self._address = address
        self._settings = settings
        self._ledger = ledger
        self._what = what
        self._secret = credential(address.host)
        self._auth = auth_header(settings.auth, self._secret)
        self._ips: tuple[str, ...] = ()
        self._heard = False
        self._halted = threading.Event()
        self._session = requests.Session()
        # No proxies, no .netrc, no certificates from elsewhere: the address checked is the one
        # asked, and credentials come from one place.
        self._session.trust_env = False
        self._session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
        refuse_all = http.cookiejar.DefaultCookiePolicy(allowed_domains=[])
        self._session.cookies.set_policy(refuse_all)
        pinned = _Pinned(address.host, settings.concurrency)
        self._session.mount("https://", pinned)
        plain = HTTPAdapter(pool_connections=2, pool_maxsize=settings.concurrency, max_retries=0)
        self._session.mount("http://", plain)

    def close(self) -> None:
        """Close all connections."""
        self._session.close()

    def halt(self, halted: bool = True) -> None:
        """Let every thread that asks give up before its next try, or let them ask again."""
        if halted:
            self._halted.set()
        else:
            self._halted.clear()

    def ask(
        self,
        body: bytes | None,
        headers: Mapping[str, str],
        *,
        queries: int,
        most: int,
        read: Callable[[bytes, Mapping[str, str]], Answer],
        target: str | None = None,
    ) -> Answer:
        """Return what `read` makes of the answer to a POST of `body`, or to a GET if it is None.

        Args:
            body: what is sent.
            headers: of the protocol.
            queries: images in it, which the budget pays for.
            most: bytes an answer may have.
            read: takes the answer's body and headers; raises `Malformed`.
            target: path and query, where they are not the address's own.

        Raises:
            BudgetSpentError: the budget does not allow this try.
            OutputError: answers came, but none that `read` takes.
            RunError: `halt` was called.
            SpecError: the server refuses (4xx, a redirect, its certificate), or could not be had
                in all tries.
        """
        tries, odd, last = 0, 0, "nothing was asked yet"
        while True:
            self._take_turn(queries, last)
            tries += 1
            try:
                answer = read(*self._once(body, headers, most, target))
                self._heard = True
                return answer
            except NotFinite as found:
                odd += 1
                # A model may mean it: then it is for the evaluation to call the row unscored.
                if odd > min(_NOT_FINITE_TRIES, self._settings.retries):
                    return found.values  # type: ignore[return-value]
                fault, malformed = _Fault(str(found)), True
            except Malformed as error:
                fault, malformed = _Fault(str(error)), True
            except _Fault as error:
                fault, malformed = error, False
                if not error.sent:
                    self._ledger.refund(queries)
            last = str(fault)
            hopeless = (malformed or not fault.sent) and not self._heard
            most_tries = self._settings.retries + 1
            if tries >= (min(_UNHEARD_TRIES, most_tries) if hopeless else most_tries):
                self._give_up(last, tries, malformed)
            self._wait(fault, tries)

    def _take_turn(self, queries: int, last: str) -> None:
        """Count `queries` and wait for the turn of a request that asks them."""
        settings = self._settings
        try:
            wait_s = self._ledger.reserve(queries, budget=settings.budget, rps=settings.rps)
        except BudgetSpentError as error:
            before = "" if last == "nothing was asked yet" else f" (the last try: {last})"
            raise BudgetSpentError(
                f"{self._what}: {error}, and the next request asks {queries:,}{before}. Answers "
                "so far are kept: run the same command with a larger budget= to go on"
            ) from None
        self._pass(wait_s)

    def _pass(self, seconds: float) -> None:
        """Let time pass, unless `halt` says that nobody waits for the answer any more."""
        if self._halted.wait(seconds):
            raise RunError(f"{self._what}: the questions in hand were given up")

    def _wait(self, fault: _Fault, tries: int) -> None:
        """Let time pass after a failed try: what the server asked for, for all; else a backoff."""
        if fault.wait_s > LONGEST_WAIT_S:
            raise SpecError(
                f"{self._what}: the server asks to wait {fault.wait_s:.0f} s ({fault}), more than "
                f"{LONGEST_WAIT_S:.0f} s; run the same command again then"
            )
        if fault.wait_s:
            self._ledger.pause(fault.wait_s)
            return
        longest = min(_LONGEST_BACKOFF_S, self._settings.backoff_s * 2.0 ** (tries - 1))
        wait_s = longest * (0.5 + random.random() / 2)
        level = logging.WARNING if tries > 3 else logging.INFO
        _log.log(level, "%s: %s; try %d follows in %.1f s", self._what, fault, tries + 1, wait_s)
        self._pass(wait_s)

    def _give_up(self, last: str, tries: int, malformed: bool) -> NoReturn:
        text = f"{self._what}: {tries} tries in a row failed, the last one so: {last}"
        if malformed:
            raise OutputError(f"{text}; check the protocol, shape, classes and output options")
        raise SpecError(f"{text}; is the server running at {self._address.url}?")

    def _once(
        self, body: bytes | None, headers: Mapping[str, str], most: int, target: str | None
    ) -> tuple[bytes, Mapping[str, str]]:
        """Return body and headers of one answer with status 200."""
        settings = self._settings
        deadline = time.monotonic() + settings.timeout_s
        sent = {
            "Host": self._address.netloc,
            "Accept-Encoding": "identity",  # a small answer must not unpack into a large one
            "User-Agent": "raybench",
            **headers,
            **self._auth,
        }
        with self._connect(body, sent, target or self._address.target) as answer:
            content = self._read(answer, most, deadline)
            if answer.status_code != 200:
                self._refused(answer, content)
            return content, answer.headers

    def _connect(
        self, body: bytes | None, headers: Mapping[str, str], target: str
    ) -> requests.Response:
        """Return the response, its body unread, of the first address that takes a connection."""
        timeout = (min(10.0, self._settings.timeout_s), self._settings.timeout_s)
        reason = ""
        for ip in self._addresses():
            host = f"[{ip}]" if ":" in ip else ip
            url = f"{self._address.scheme}://{host}:{self._address.port}{target}"
            try:
                return self._session.request(
                    "GET" if body is None else "POST",
                    url,
                    data=body,
                    headers=dict(headers),
                    timeout=timeout,
                    allow_redirects=False,
                    stream=True,
                )
            except requests.exceptions.SSLError as error:
                if "CERTIFICATE_VERIFY_FAILED" in str(error) or "doesn't match" in str(error):
                    raise SpecError(
                        f"{self._what}: the certificate of {self._address.host} is refused; for "
                        "an authority of your own set REQUESTS_CA_BUNDLE to its file"
                    ) from None
                raise _Fault("the TLS handshake failed", sent=False) from None
            except requests.RequestException as error:
                if not _unsent(error):
                    raise _Fault(f"connection lost ({_kind(error)})") from None
                reason = _kind(error)
        self._ips = ()  # the name may have moved: it is looked up, and judged, again
        raise _Fault(f"no connection to {self._address.netloc} ({reason})", sent=False)

    def _addresses(self) -> tuple[str, ...]:
        if not self._ips:
            try:
                found = resolve(self._address, private=self._settings.private)
            except OSError as error:
                raise _Fault(
                    f"the name {self._address.host} does not resolve ({error.strerror})",
                    sent=False,
                ) from None
            if self._secret and self._address.scheme == "http" and any(map(is_public, found)):
                raise SpecError(
                    f"{self._what}: a credential would go to {self._address.host} in plain text; "
                    f"use https, or unset {TOKEN} for this host"
                )
            self._ips = found
        return self._ips

    def _read(self, answer: requests.Response, most: int, deadline: float) -> bytes:
        """Return the body, of at most `most` bytes, read before `deadline`."""
        announced = answer.headers.get("Content-Length", "")
        if announced.isdigit() and int(announced) > most:
            raise Malformed(f"the answer has {int(announced):,} bytes, more than {most:,}")
        coding = answer.headers.get("Content-Encoding", "identity")
        if coding.lower() != "identity":
            raise Malformed(f"the answer is packed ({coding[:20]}), which was not asked for")
        pieces, size = [], 0
        try:
            # What has arrived, piece by piece: a server that trickles must not hold us for ever.
            while piece := answer.raw.read1(_PIECE, decode_content=False):
                size += len(piece)
                if size > most:
                    raise Malformed(f"the answer has more than {most:,} bytes")
                if time.monotonic() > deadline:
                    raise _Fault(f"the answer took more than {self._settings.timeout_s:g} s")
                pieces.append(piece)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Fault(f"the answer broke off ({_kind(error)})") from None
        if announced.isdigit() and size != int(announced):
            raise _Fault(f"the answer broke off after {size:,} of {int(announced):,} bytes")
        return b"".join(pieces)

    def _refused(self, answer: requests.Response, content: bytes) -> NoReturn:
        """Raise what a status other than 200 means: a fault that may pass, or an end."""
        status = answer.status_code
        said = self._quote(content)
        if status in _AGAIN or status >= 500:
            wait_s = _retry_after(answer.headers.get("Retry-After"))
            raise _Fault(f"the server answers {status}{said}", wait_s=wait_s)
        if 300 <= status < 400:
            raise SpecError(
                f"{self._what}: the server redirects ({status}), which is never followed; give "
                "the final address in the spec"
            )
        if 200 <= status < 300:
            raise Malformed(f"the server answers {status}, expected 200")
        hint = ""
        if status in (401, 403, 407):
            names = " or ".join(token_names(self._address.host))
            hint = f"; if it wants a credential, set {names} (and header=)"
        elif status in (404, 405):
            hint = f"; is {self._address.target} the right path?"
        raise SpecError(f"{self._what}: the server refuses with {status}{said}{hint}")

    def _quote(self, content: bytes) -> str:
        """Return the beginning and end of an error's text, without our credential."""
        text = " ".join(content.decode(errors="replace").split())
        if self._secret:
            text = text.replace(self._secret, "***")
        text = "".join(letter for letter in text if letter.isprintable())
        if len(text) > _SHOWN:
            text = f"{text[: _SHOWN // 3]} ... {text[-_SHOWN * 2 // 3 :]}"
        return f" ({text})" if text else ""


def _retry_after(value: str | None) -> float:
    """Return the seconds that a Retry-After header asks for (a number or a date), else 0."""
    if not value:
        return 0.0
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def _unsent(error: requests.exceptions.RequestException) -> bool:
    """Whether no connection came about, so that not a byte of the request has left."""
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return True
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", cause)
    return isinstance(reason, urllib3.exceptions.NewConnectionError)


def _kind(error: Exception) -> str:
    """Return what went wrong at the bottom of `error`, by the kind of exception alone.

    Their texts may quote what was sent.
    """
    while True:
        inner = getattr(error, "reason", None) or (error.args[-1] if error.args else None)
        if not isinstance(inner, Exception):
            break
        error = inner
    if isinstance(error, urllib3.exceptions.NewConnectionError):
        found = re.search(r"\[Errno -?\d+\] ([\w ]+)", str(error))
        return found.group(1).lower() if found else "no connection"
    return type(error).__name__
