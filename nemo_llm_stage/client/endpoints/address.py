"""
A server's address: what a user writes as base_url, checked and normalised once.

Pure; nothing is looked up or connected to here.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, urlsplit

from nemo_llm_stage.errors import ConfigError

_ROUTES = ("/chat/completions", "/completions", "/models")
_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_PRIVATE_SUFFIXES = (".local", ".internal", ".cluster.local", ".svc", ".lan", ".localhost")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """
    One server.

    Attributes:
        base_url: ``http(s)://host[:port]/…`` down to the part before ``/chat/completions``; no slash at the end.
        host: Lower case, without brackets.
    """

    base_url: str
    host: str

    def url(self, path: str) -> str:
        """Return the whole URL of `path`."""
        return f"{self.base_url}/{path}"

    @property
    def is_tls(self) -> bool:
        """Whether what is sent is encrypted."""
        return self.base_url.startswith("https:")

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        address = _address(self.host)
        return address.is_loopback if address else self.host == "localhost" or self.host.endswith(".localhost")

    @property
    def is_private(self) -> bool:
        """Whether the host looks like one of a private network: by its address or by its name."""
        address = _address(self.host)
        if address is not None:
            return address.is_private or address.is_link_local
        return "." not in self.host or self.host.endswith(_PRIVATE_SUFFIXES)


def parse_base_url(base_url: str) -> Endpoint:
    """
    Return the endpoint that a user's `base_url` means.

    ``/v1`` is added where there is no path; a route at the end (``/chat/completions``) is taken off.

    Raises:
        ConfigError: Not an http(s) URL with a host, or one that carries a user, password, query or fragment.
    """
    if not isinstance(base_url, str):
        raise ConfigError(f"base_url must be a text, not {type(base_url).__name__}.")
    try:
        parts = urlsplit(base_url.strip())
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"base_url is no URL: {error}. {_EXAMPLE}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"base_url must not hold a user or password; give the key by api_key_env. {_EXAMPLE}")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"base_url {base_url!r} does not begin with http:// or https:// and a host. {_EXAMPLE}")
    if parts.query or parts.fragment:
        place = "?…; put parameters into query" if parts.query else "#…"
        raise ConfigError(f"base_url must end with its path, without {place}. {_EXAMPLE}")
    host = _ascii_host(parts.hostname)
    where = f"[{host}]" if ":" in host else host
    netloc = where if port is None else f"{where}:{port}"
    return Endpoint(f"{parts.scheme}://{netloc}{_path(parts)}", host)


_EXAMPLE = "Write for instance http://localhost:8000/v1."


def _path(parts: SplitResult) -> str:
    path = parts.path.rstrip("/")
    for route in _ROUTES:
        path = path.removesuffix(route)
    return quote(path, safe="/%:@!$&'()*+,;=~") or "/v1"


def _ascii_host(host: str) -> str:
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        ascii_host = ""
    if _address(ascii_host) is None and _HOST_NAME.fullmatch(ascii_host) is None:
        raise ConfigError(f"base_url names the host {host!r}, which cannot be one. {_EXAMPLE}")
    return ascii_host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def in_url(host: str) -> str:
    """Return `host` as it stands in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
