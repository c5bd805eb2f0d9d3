"""The client against real servers that fail, lie, stall, redirect, flood, or ask for patience."""

import datetime
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from http_servers import Server, as_json, running, serving

from raybench.core.errors import BudgetSpentError, OutputError, SpecError
from raybench.core.spec import parse
from raybench.models.http_address import parse_address
from raybench.models.http_client import Client, Malformed, NotFinite, Settings
from raybench.models.http_ledger import Ledger

SECRET = "s3cr3t-0123456789"
FAST = {"backoff_s": 0.005, "timeout_s": 0.6, "private": True}


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Return what makes clients that count in one ledger; closed at the end."""
    with ExitStack() as stack:
        ledger = Ledger(tmp_path / "ledger.sqlite", "u")
        stack.callback(ledger.close)

        def made(url: str, **settings: Any) -> Client:
            address = parse_address(parse(f"{url}?protocol=mlflow"))
            client = Client(address, Settings(**{**FAST, **settings}), ledger, what="toy")
            stack.callback(client.close)
            client.ledger = ledger  # type: ignore[attr-defined]
            return client

        yield made


def ask(client: Client, queries: int = 1, most: int = 1 << 16, body: bytes = b"{}") -> Any:
    def read(content: bytes, headers: Mapping[str, str]) -> Any:
        try:
            return json.loads(content)
        except ValueError:
            raise Malformed("no JSON") from None

    return client.ask(body, {}, queries=queries, most=most, read=read)


def in_turn(*answers: tuple[int, dict[str, str], bytes]) -> Callable[..., Any]:
    """Return a route that gives `answers` one after the other, the last one for ever."""
    left = list(answers)
    return lambda body, headers: left.pop(0) if len(left) > 1 else left[0]


GOOD = as_json({"ok": 1})


def test_it_asks_again_until_an_answer_comes(make: Callable[..., Client]) -> None:
    faults = [
        (500, {}, b"oops"),
        (503, {"Retry-After": "0"}, b""),
        (429, {}, b""),
        (408, {}, b""),
        (200, {}, b'{"ok"'),
        (200, {"Content-Encoding": "gzip"}, b"\x1f\x8b"),
        (204, {}, b""),
    ]
    with serving({"/": in_turn(*faults[:4], GOOD)}) as server:
        client = make(server.url)
        assert ask(client, 3) == {"ok": 1}
        assert client.ledger.total == 5 * 3
    # Nothing of use was ever answered: a few tries tell that the spec is wrong.
    with serving({"/": in_turn(*faults[4:])}) as server:
        with pytest.raises(OutputError, match=r"4 tries in a row.*check the protocol"):
            ask(make(server.url))
        assert len(server.seen) == 4


def test_it_gives_up_after_its_retries(make: Callable[..., Client]) -> None:
    with serving({"/": in_turn((500, {}, b"the model is on fire"))}) as server:
        client = make(server.url, retries=3)
        with pytest.raises(SpecError, match=r"4 tries.*500 \(the model is on fire\)"):
            ask(client, 2)
        assert (len(server.seen), client.ledger.total) == (4, 8)


def test_a_budget_ends_the_tries_too(make: Callable[..., Client]) -> None:
    with serving({"/": in_turn((500, {}, b"x"))}) as server:
        client = make(server.url, budget=7)
        with pytest.raises(BudgetSpentError, match=r"6 of 7.*last try: the server answers 500"):
            ask(client, 3)
        assert len(server.seen) == 2


def test_retry_after_is_heeded_by_all_who_share_the_ledger(make: Callable[..., Client]) -> None:
    with serving({"/": in_turn((429, {"Retry-After": "1"}, b""), GOOD)}) as server:
        one, other = make(server.url, backoff_s=0.001), make(server.url)
        done: list[float] = []
        began = time.monotonic()
        thread = threading.Thread(target=lambda: done.append(ask(one) and time.monotonic()))
        thread.start()
        while len(server.seen) < 1 or one.ledger.total < 1:
            time.sleep(0.01)
        time.sleep(0.1)
        ask(other)
        assert time.monotonic() - began >= 0.99
        thread.join()
        assert done[0] - began >= 0.99
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=1.6)
    date = format_datetime(later, usegmt=True)
    with serving({"/": in_turn((503, {"Retry-After": date}, b""), GOOD)}) as server:
        began = time.monotonic()
        ask(make(server.url))
        assert time.monotonic() - began > 0.4  # dates have whole seconds
    with (
        serving({"/": in_turn((429, {"Retry-After": "7200"}, b""), GOOD)}) as server,
        pytest.raises(SpecError, match="asks to wait 7200 s"),
    ):
        ask(make(server.url))


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_never_followed(status: int, make: Callable[..., Client]) -> None:
    with serving({"/": lambda body, headers: GOOD}) as elsewhere:
        location = {"Location": f"{elsewhere.url}/?token={SECRET}"}
        with serving({"/": in_turn((status, location, b""))}) as server:
            with pytest.raises(SpecError, match="redirects") as caught:
                ask(make(server.url))
            assert len(server.seen) == 1
        assert elsewhere.seen == []
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "hint"), [(400, ""), (401, "RAYBENCH_HTTP_TOKEN"), (404, "right path"), (413, "")]
)
def test_refusals_end_at_once(status: int, hint: str, make: Callable[..., Client]) -> None:
    with serving({"/": in_turn((status, {}, b"no " * 500))}) as server:
        with pytest.raises(SpecError, match=f"refuses with {status}.*{hint}") as caught:
            ask(make(server.url))
        assert len(server.seen) == 1
    assert len(str(caught.value)) < 700


def test_answers_are_capped_whether_announced_or_not(make: Callable[..., Client]) -> None:
    with serving({"/": in_turn((200, {}, b" " * 5000))}) as server:
        client = make(server.url, retries=0)
        with pytest.raises(OutputError, match="5,000 bytes, more than 4,999"):
            ask(client, most=4999)
        with pytest.raises(OutputError, match="no JSON"):
            ask(client, most=5000)
    sent = []

    def flood(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(10_000):
            connection.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
            sent.append(65536)

    with raw_server(flood) as url, pytest.raises(OutputError, match="more than 100,000 bytes"):
        ask(make(url, retries=0), most=100_000)
    assert sum(sent) < 50_000_000


@contextmanager
def raw_server(speak: Callable[[socket.socket], None]) -> Iterator[str]:
    """Let `speak` do what it likes with each connection, once a request has come."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(1 << 16)
                    speak(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def test_what_stalls_breaks_off_or_talks_nonsense_is_a_fault(make: Callable[..., Client]) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"

    def trickle(connection: socket.socket) -> None:
        connection.sendall(head)
        for _ in range(100):
            connection.sendall(b" ")
            time.sleep(0.05)

    cases = {
        "took more than 0.6 s": trickle,
        "broke off": lambda connection: connection.sendall(head + b"{"),
        "connection lost": lambda connection: connection.sendall(b"SSH-2.0\r\n\r\n"),
        "connection lost ": lambda connection: None,
        "connection lost  ": lambda connection: time.sleep(1),
    }
    for said, speak in cases.items():
        with raw_server(speak) as url, pytest.raises(SpecError, match=said.strip()):
            ask(make(url, retries=0))


def test_nobody_listening_costs_nothing(make: Callable[..., Client]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = make(f"http://127.0.0.1:{port}", budget=1)
    with pytest.raises(SpecError, match=r"4 tries.*connection refused.*is the server running"):
        ask(client)
    assert client.ledger.total == 0


def test_scores_that_stay_nan_are_handed_on_after_some_tries(make: Callable[..., Client]) -> None:
    values = np.array([[np.nan, 1.0]])

    def read(content: bytes, headers: Mapping[str, str]) -> np.ndarray:
        raise NotFinite(values)

    with serving({"/": in_turn(GOOD)}) as server:
        client = make(server.url)
        assert client.ask(b"", {}, queries=1, most=100, read=read) is values
        assert len(server.seen) == 3


def test_requests_keep_to_the_rate(make: Callable[..., Client]) -> None:
    with serving({"/": in_turn(GOOD)}) as server:
        one, other = make(server.url, rps=20), make(server.url, rps=20)
        began = time.monotonic()
        for client in (one, other) * 4:
            ask(client)
        assert time.monotonic() - began >= 7 / 20
        assert len(server.seen) == 8


def header_seen(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Client], auth: str = "bearer"
) -> dict[str, str]:
    with serving({"/": in_turn(GOOD)}) as server:
        ask(make(server.url, auth=auth))
        return {name.lower(): value for name, value in server.seen[0][2].items()}


def test_credentials_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Client], tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login anna password hunter2\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert "authorization" not in header_seen(monkeypatch, make)
    monkeypatch.setenv("RAYBENCH_HTTP_TOKEN", SECRET)
    assert header_seen(monkeypatch, make)["authorization"] == f"Bearer {SECRET}"
    assert header_seen(monkeypatch, make, "X-Api-Key")["x-api-key"] == SECRET
    monkeypatch.setenv("RAYBENCH_HTTP_TOKEN_127_0_0_1", "anna:pw")
    assert header_seen(monkeypatch, make, "basic")["authorization"] == "Basic YW5uYTpwdw=="
    monkeypatch.setenv("RAYBENCH_HTTP_TOKEN_127_0_0_1", "")
    assert "authorization" not in header_seen(monkeypatch, make)
    monkeypatch.setenv("RAYBENCH_HTTP_TOKEN_127_0_0_1", f"{SECRET}\nX-Evil: 1")
    with pytest.raises(SpecError, match="RAYBENCH_HTTP_TOKEN_127_0_0_1 holds") as caught:
        header_seen(monkeypatch, make)
    assert SECRET not in str(caught.value)


def test_proxies_of_the_environment_and_cookies_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Client]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with serving({"/": in_turn((200, {"Set-Cookie": "id=7; Path=/"}, b"{}"))}) as server:
        client = make(server.url)
        ask(client)
        ask(client)
        assert all("Cookie" not in headers for _, _, headers, _ in server.seen)


def test_credentials_are_in_no_message_and_no_log(
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Client],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("RAYBENCH_HTTP_TOKEN", SECRET)
    caplog.set_level(logging.DEBUG)

    def echo(body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        return int(json.loads(body)), {}, json.dumps(headers).encode()

    texts = []
    with serving({"/": echo}) as server:
        for status in (400, 401, 500, 302):
            client = make(server.url, retries=1)
            with pytest.raises(SpecError) as caught:
                ask(client, body=str(status).encode())
            error: BaseException | None = caught.value
            while error is not None:
                texts.append(repr(error) + str(error))
                error = error.__cause__ or error.__context__
    assert any("***" in text for text in texts)
    assert not any(SECRET in text for text in (*texts, caplog.text))


def names(monkeypatch: pytest.MonkeyPatch, *turns: str) -> list[str]:
    """Let names resolve to `turns` one by one, the last for ever; return what was looked up."""
    left, asked = list(turns), []

    def found(host: str, port: int, *_: object, **__: object) -> list[tuple]:
        ip = host
        if host.endswith((".test", ".com")):
            asked.append(host)
            ip = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port))]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return asked


def test_the_address_that_was_judged_is_the_one_connected_to(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Client]
) -> None:
    with serving({"/": in_turn(GOOD)}) as server:
        url = f"http://model.test:{server.server_port}"
        # The second look-up would lead to the metadata service: it must never be made.
        asked = names(monkeypatch, "127.0.0.1", "169.254.169.254")
        client = make(url)
        assert ask(client) == {"ok": 1}
        assert ask(client) == {"ok": 1}
        assert asked == ["model.test"]
        hosts = {headers["Host"] for _, _, headers, _ in server.seen}
        assert hosts == {f"model.test:{server.server_port}"}
        names(monkeypatch, "127.0.0.1")
        with pytest.raises(SpecError, match="private address behind a public name"):
            ask(make(url, private=False))
        names(monkeypatch, "169.254.169.254")
        with pytest.raises(SpecError, match="metadata"):
            ask(make(url, private=True))
        assert len(server.seen) == 2


def test_a_name_that_moves_is_looked_up_and_judged_again(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Client]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    names(monkeypatch, "127.0.0.1", "169.254.169.254")
    with pytest.raises(SpecError, match="metadata"):
        ask(make(f"http://model.test:{port}"))


def test_a_credential_never_goes_out_in_plain_text(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Client]
) -> None:
    names(monkeypatch, "8.8.8.8")
    monkeypatch.setenv("RAYBENCH_HTTP_TOKEN", SECRET)
    with pytest.raises(SpecError, match="plain text; use https"):
        ask(make("http://api.example.com/"))


def certificate(folder: Path, *hosts: str) -> Path:
    """Write a self-signed certificate of `hosts` with its key, and return its path."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = []
    for host in hosts:
        try:
            alternatives.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            alternatives.append(x509.DNSName(host))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "server.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + made.public_bytes(serialization.Encoding.PEM)
    )
    return path


def test_certificates_are_checked_for_the_name_though_the_address_is_pinned(
    monkeypatch: pytest.MonkeyPatch, make: Callable[..., Client], tmp_path: Path
) -> None:
    path = certificate(tmp_path, "model.test", "127.0.0.1")
    server = Server({"/": in_turn(GOOD)})
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    asked: list[str | None] = []
    context.sni_callback = lambda connection, name, _: asked.append(name)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with running(server):
        names(monkeypatch, "127.0.0.1")
        url = f"https://model.test:{server.server_port}"
        with pytest.raises(SpecError, match=r"certificate of model\.test is refused.*CA_BUNDLE"):
            ask(make(url))
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(path))
        assert ask(make(url)) == {"ok": 1}
        assert ask(make(f"https://127.0.0.1:{server.server_port}")) == {"ok": 1}
        with pytest.raises(SpecError, match=r"certificate of other\.test is refused"):
            ask(make(f"https://other.test:{server.server_port}"))
    assert "model.test" in asked
