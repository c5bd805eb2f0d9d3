"""Where a black-box model is reached, and whether it may be: host lists and addresses refused.

    >>> address = parse_address(parse("http://127.0.0.1:5000/invocations?protocol=mlflow"))
    >>> resolve(address, private=True)
    ('127.0.0.1',)

Specs come from files and colleagues, and name hosts that this machine then talks to. So the host
must be on the list where there is one, and what its name resolves to is judged too: addresses that
hand out credentials (link-local, cloud metadata) are never asked, and a public name that resolves
to a private address is taken for an attack. Callers connect to the addresses returned, not to the
name, so that it cannot resolve to another in between.
"""

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, urlsplit

from raybench.core.errors import SpecError
from raybench.core.spec import Spec

__all__ = [
    "ALLOW",
    "Address",
    "is_public",
    "looks_secret",
    "may_be_private",
    "parse_address",
    "refusal",
    "resolve",
]

ALLOW = "RAYBENCH_HTTP_ALLOW"
"""Environment variable: the only hosts that may be asked, with commas between; *.name for all."""

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_PORTS = {"http": 80, "https": 443}

# Where clouds answer with credentials: Amazon's IPv6 one, Azure's, Oracle's, Alibaba's. The
# IPv4 one that most share, 169.254.169.254, is link-local.
_METADATA = frozenset({"fd00:ec2::254", "168.63.129.16", "192.0.0.192", "100.100.100.200"})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")
_SECRET = re.compile(
    r"token|secret|passw|pwd|signature|credential|api[-_]?key|access[-_]?key|^sig$|^key$|authoriz",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """An HTTP address without credentials.

    Attributes:
        scheme: "http" or "https".
        host: name or address, lower case, IPv6 without brackets.
        port: where it listens.
        target: path and query, percent-encoded; begins with a slash.
    """

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        """Host and port as URLs spell them; the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The one spelling of this address."""
        return f"{self.scheme}://{self.netloc}{self.target}"

    @property
    def literal(self) -> bool:
        """Whether the host is an address, or localhost, so that no name service decides."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return self.host == "localhost" or self.host.endswith(".localhost")
        return True


def looks_secret(name: str) -> bool:
    """Return whether an option or query parameter of this `name` would hold a credential."""
    return _SECRET.search(name) is not None


def parse_address(spec: Spec) -> Address:
    """Return the address that `spec` names; a query string is spelt with %3F for its mark.

    Raises:
        SpecError: no host, an impossible port, a fragment, or a credential in it. Messages never
            repeat one.
    """
    what = f"{spec.scheme} model"
    try:
        parts = urlsplit(f"{spec.scheme}:{spec.rest}")
        host, port = parts.hostname, parts.port
        # Names beyond ASCII are asked for, and told to the server, in the form of the DNS.
        host = host if host is None or ":" in host else host.encode("idna").decode()
    except ValueError as error:
        raise SpecError(f"{what}: the address cannot be read ({error})") from None
    if "@" in parts.netloc:
        raise SpecError(
            f"{what} at {host}: a user and password do not belong in a spec, which is stored "
            "beside results; set RAYBENCH_HTTP_TOKEN instead (docs/http.md)"
        )
    if not spec.rest.startswith("//") or not host or not re.fullmatch(r"[\w.:-]+", host):
        raise SpecError(
            f"{spec}: expected {spec.scheme}://host:port/path?protocol=..., found no host"
        )
    if port == 0:
        raise SpecError(f"{spec}: port 0 cannot be asked")
    if parts.fragment:
        raise SpecError(f"{spec}: an address has no #fragment")
    if any(looks_secret(name) for name, _ in parse_qsl(parts.query, keep_blank_values=True)):
        raise SpecError(
            f"{what} at {host}: the address holds what looks like a credential; specs are stored "
            "beside results, so set RAYBENCH_HTTP_TOKEN instead (docs/http.md)"
        )
    target = quote(parts.path or "/", safe="/:@!$&'()*+,;=~%-._")
    if parts.query:
        target += "?" + quote(parts.query, safe="/:@!$&'()*+,;=~%-._?")
    return Address(
        scheme=spec.scheme, host=host.lower(), port=port or _PORTS[spec.scheme], target=target
    )


def may_be_private(address: Address, allow: str | None) -> bool:
    """Return whether `address` may lie in a private network; refuse a host that is on no list.

    Loopback and private addresses may be asked where they are spelt out (``127.0.0.1``,
    ``10.0.0.5``, ``localhost``) or where a list names the host.

    Args:
        address: where the model is.
        allow: the list of the spec, with commas between, or None. The environment's comes on top:
            a host must be on both.

    Raises:
        SpecError: the host is not on a list.
    """
    listed = False
    for source, patterns in (("allow=", allow), (ALLOW, os.environ.get(ALLOW))):
        if patterns is None:
            continue
        names = [name.strip().lower() for name in patterns.split(",") if name.strip()]
        if not any(_matches(address, name) for name in names):
            raise SpecError(
                f"{address.url}: the host {address.host} is not on the list of {source} "
                f"({', '.join(names) or 'empty'}); add it there if it may be asked"
            )
        listed = True
    return listed or address.literal


def _matches(address: Address, pattern: str) -> bool:
    host = f"[{address.host}]" if ":" in address.host else address.host
    if pattern in (address.host, host, f"{host}:{address.port}"):
        return True
    return pattern.startswith("*.") and address.host.endswith(pattern[1:])


def resolve(address: Address, *, private: bool) -> tuple[str, ...]:
    """Return the IP addresses of the host, every one of them fit to be asked.

    Raises:
        OSError: the name does not resolve now.
        SpecError: one of them is refused; see `refusal`.
    """
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    for text in addresses:
        reason = refusal(text, private=private)
        if reason:
            via = "" if text == address.host else f" resolves to {text}, which"
            raise SpecError(f"{address.url} is refused: {address.host}{via} {reason}")
    return addresses


def refusal(text: str, *, private: bool) -> str | None:
    """Return why the IP address `text` is not asked, or None.

    Link-local addresses, cloud metadata, multicast and unspecified ones never are; loopback and
    whatever else is not routed in public only with `private`. An IPv4 address inside an IPv6 one
    is judged as itself.
    """
    outer = ipaddress.ip_address(text.partition("%")[0])
    ip = _embedded(outer) or outer
    if str(ip) in _METADATA or ip.is_link_local:
        return "is a link-local or cloud metadata address, which hands out credentials"
    if ip.is_multicast or ip.is_unspecified or _special(ip):
        return "is no address of a single host"
    if not (_routed(ip) or private):
        return (
            "is a private address behind a public name; if that is meant, name the host in allow= "
            f"or in {ALLOW}"
        )
    return None


def is_public(text: str) -> bool:
    """Return whether traffic to the IP address `text` may leave the local network."""
    outer = ipaddress.ip_address(text.partition("%")[0])
    return _routed(_embedded(outer) or outer)


def _routed(ip: IpAddress) -> bool:
    # The old site-local block counts as global to the library.
    return ip.is_global and not (isinstance(ip, ipaddress.IPv6Address) and ip.is_site_local)


def _special(ip: IpAddress) -> bool:
    """Whether no host has this address: the network itself, and what is reserved."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip in _THIS_NETWORK or ip.is_reserved
    # ::1 lies in a block that is reserved otherwise.
    return ip.is_reserved and not ip.is_loopback


def _embedded(ip: IpAddress) -> IpAddress | None:
    """Return the IPv4 address that an IPv6 one carries (mapped, 6to4, Teredo, NAT64), or None."""
    if isinstance(ip, ipaddress.IPv4Address):
        return None
    if ip.teredo is not None:
        return ip.teredo[1]
    if ip in _NAT64:
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour
