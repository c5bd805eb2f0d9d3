"""Which hosts and addresses a model may be at, and that credentials in specs are never repeated."""

import socket

import pytest

from raybench.core.errors import SpecError
from raybench.core.spec import parse
from raybench.models.http_address import (
    ALLOW,
    is_public,
    looks_secret,
    may_be_private,
    parse_address,
    refusal,
    resolve,
)

# What a request forger would like to reach, and the ways to write it.
NEVER = (
    "169.254.169.254", "169.254.1.1", "fe80::1", "fe80::1%eth0", "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fd00:ec2::254", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1",
    "255.255.255.255", "240.0.0.1", "::169.254.169.254",
)  # fmt: skip
PRIVATE = (
    "127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1",
    "100.64.0.1", "fc00::1", "fec0::1", "198.18.0.1", "::ffff:10.0.0.1", "2002:7f00:1::",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "2001:4860:4860::8888", "64:ff9b::808:808", "::ffff:8.8.8.8")


def address_of(text: str):
    return parse_address(parse(f"{text}?protocol=mlflow"))


@pytest.mark.parametrize("text", NEVER)
def test_some_addresses_are_never_asked(text: str) -> None:
    assert refusal(text, private=True)
    assert refusal(text, private=False)


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_only_where_meant(text: str) -> None:
    assert refusal(text, private=True) is None
    assert "allow=" in str(refusal(text, private=False))
    assert not is_public(text)


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_asked(text: str) -> None:
    assert refusal(text, private=False) is None
    assert is_public(text)


@pytest.mark.parametrize(
    ("spec", "url", "host", "port"),
    [
        ("http://127.0.0.1:5000/x", "http://127.0.0.1:5000/x", "127.0.0.1", 5000),
        ("https://API.Example.com", "https://api.example.com/", "api.example.com", 443),
        ("https://a.example:443/a b", "https://a.example/a%20b", "a.example", 443),
        ("http://[::1]:8000/v2", "http://[::1]:8000/v2", "::1", 8000),
        ("https://bücher.de/x", "https://xn--bcher-kva.de/x", "xn--bcher-kva.de", 443),
        ("http://h/p%3Fapi-version=2%26x=1", "http://h/p?api-version=2&x=1", "h", 80),
    ],
)  # fmt: skip
def test_addresses_have_one_spelling(spec: str, url: str, host: str, port: int) -> None:
    address = address_of(spec)
    assert (address.url, address.host, address.port) == (url, host, port)
    text = parse(f"{spec}?protocol=mlflow").canonical()
    assert parse(text).canonical() == text
    assert address_of(text.partition("?")[0]) == address


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("http:", "found no host"),
        ("http:///path", "found no host"),
        ("http:127.0.0.1/x", "found no host"),
        ("http://host:99999/", "cannot be read"),
        ("http://host:0/", "port 0"),
        ("http://host/x#y", "fragment"),
        ("http://ho st/x", "found no host"),
    ],
)
def test_odd_addresses_are_refused(spec: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        address_of(spec)


@pytest.mark.parametrize(
    "spec",
    [
        "https://anna:hunter2@api.example.com/x",
        "https://hunter2@api.example.com/x",
        "https://api.example.com/x%3Fapi_key=hunter2",
        "https://api.example.com/x%3Fa=1%26access_token=hunter2",
    ],
)
def test_credentials_in_an_address_are_refused_and_not_repeated(spec: str) -> None:
    with pytest.raises(SpecError, match="RAYBENCH_HTTP_TOKEN") as caught:
        address_of(spec)
    assert "hunter2" not in str(caught.value)
    assert "api.example.com" in str(caught.value)


def test_names_of_credentials() -> None:
    for name in ("token", "API_KEY", "x-api-key", "client_secret", "password", "sig", "key"):
        assert looks_secret(name), name
    for name in ("protocol", "shape", "label", "score", "auth", "scores", "input", "budget"):
        assert not looks_secret(name), name


def test_what_is_spelt_out_may_be_private() -> None:
    for host in ("127.0.0.1", "[::1]", "10.0.0.7", "localhost"):
        assert may_be_private(address_of(f"http://{host}/"), None)
    assert not may_be_private(address_of("https://api.example.com/"), None)


def test_the_spec_list_and_the_environment_list_must_both_hold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inside = address_of("http://triton.models.svc:8000/")
    assert may_be_private(inside, "*.models.svc")
    assert may_be_private(inside, "other, triton.models.svc:8000")
    with pytest.raises(SpecError, match=r"not on the list of allow= \(triton\.models\.svc:9000\)"):
        may_be_private(inside, "triton.models.svc:9000")
    with pytest.raises(SpecError, match="not on the list"):
        may_be_private(address_of("http://models.svc/"), "*.models.svc")
    monkeypatch.setenv(ALLOW, "*.example.com")
    with pytest.raises(SpecError, match=ALLOW):
        may_be_private(inside, "*.models.svc")
    with pytest.raises(SpecError, match=ALLOW):
        may_be_private(address_of("http://127.0.0.1/"), None)
    assert may_be_private(address_of("https://api.example.com/"), None)
    monkeypatch.setenv(ALLOW, "")
    with pytest.raises(SpecError, match="empty"):
        may_be_private(address_of("https://api.example.com/"), None)


def names(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name resolve to `addresses`."""

    def found(host: str, port: int, **_: object) -> list[tuple]:
        kinds = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
        return [
            (kind, socket.SOCK_STREAM, 6, "", (each, port))
            for kind, each in zip(kinds, addresses, strict=True)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", found)


def test_a_name_is_judged_by_all_that_it_resolves_to(monkeypatch: pytest.MonkeyPatch) -> None:
    address = address_of("https://api.example.com/")
    names(monkeypatch, "8.8.8.8", "2001:4860:4860::8888")
    assert resolve(address, private=False) == ("8.8.8.8", "2001:4860:4860::8888")
    names(monkeypatch, "8.8.8.8", "169.254.169.254")
    with pytest.raises(SpecError, match=r"resolves to 169\.254\.169\.254.*metadata"):
        resolve(address, private=True)
    names(monkeypatch, "127.0.0.1")
    with pytest.raises(SpecError, match="private address behind a public name"):
        resolve(address, private=False)


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1"])
def test_odd_spellings_of_loopback_are_no_address_that_was_spelt_out(host: str) -> None:
    address = address_of(f"http://{host}/")
    assert not may_be_private(address, None)
    try:
        found = resolve(address, private=True)
    except OSError:
        return  # this system's resolver does not know them at all
    assert found == ("127.0.0.1",)
    with pytest.raises(SpecError, match=r"resolves to 127\.0\.0\.1"):
        resolve(address, private=False)
