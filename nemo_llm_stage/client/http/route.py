"""
The way to a URL: which host to connect to, through which proxy, and the head of the request that goes there.

Everything that is the same for all requests to one URL is worked out once here. Pure, apart from the environment's
proxy variables.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass_environment  # type: ignore[attr-defined]

from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.errors import BadRequestError, ConfigError

_PORTS = {"http": 80, "https": 443}
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 §5.6.2: what a header's name is made of."""

_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A plain HTTP proxy. `authorization` is the value of its header, None for none."""

    host: str
    port: int
    authorization: str | None = field(repr=False)

    @property
    def name(self) -> str:
        """``host:port``, without the password."""
        return _authority(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Route:
    """
    The way to one URL.

    Attributes:
        host: Of the server, lower case, without brackets.
        port: Of the server.
        is_tls: Whether the server is spoken to in TLS.
        proxy: None for none.
        target: What the request line asks for: the path, or for a plain proxy the whole URL.
        host_header: The server as the URL writes it.
        shown_url: The URL for messages: without its query, which may hold a key.
        server: ``http(s)://host:port``. Connections to one server can stand in for each other.
    """

    host: str
    port: int
    is_tls: bool
    proxy: Proxy | None
    target: str
    host_header: str
    shown_url: str
    server: str

    def head(self, method: str, headers: Mapping[str, str]) -> bytes:
        """
        Return the request's head without its length and its end.

        Raises:
            BadRequestError: A header's name or value cannot be written.
        """
        lines = [f"{method} {self.target} HTTP/1.1", f"host: {self.host_header}"]
        lines += [_header(name, value) for name, value in headers.items()]
        if self.proxy is not None and not self.is_tls and self.proxy.authorization is not None:
            lines.append(f"proxy-authorization: {self.proxy.authorization}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n"

    def tunnel_head(self) -> bytes:
        """Return the request for a tunnel through the proxy."""
        assert self.proxy is not None
        lines = [f"CONNECT {_authority(self.host, self.port)} HTTP/1.1", f"host: {_authority(self.host, self.port)}"]
        if self.proxy.authorization is not None:
            lines.append(f"proxy-authorization: {self.proxy.authorization}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def find_route(url: str, proxy: str | None) -> Route:
    """
    Return the way to `url`, which `endpoints` has made sound.

    Args:
        url: Absolute, http or https.
        proxy: The user's; None for what the environment says. This machine is never reached through one.

    Raises:
        ConfigError: The proxy is no usable URL.
    """
    parts = urlsplit(url)
    host, is_tls = parts.hostname or "", parts.scheme == "https"
    port = parts.port or _PORTS[parts.scheme]
    way = _proxy_for(parts, host, port, proxy)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    is_absolute = way is not None and not is_tls
    host_header = _authority(host, parts.port)
    target = f"http://{host_header}{path}" if is_absolute else path
    server = f"{parts.scheme}://{_authority(host, port)}"
    return Route(host, port, is_tls, way, target, host_header, url.partition("?")[0], server)


def parse_proxy(url: str) -> Proxy:
    """
    Return the proxy that `url` names.

    Raises:
        ConfigError: It is not ``http://[user:password@]host[:port]``. The message does not repeat it.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        port = parts.port
    except ValueError:
        parts, port = SplitResult("", "", "", "", ""), None
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError("The proxy must be written http://host:port; no other kind is supported.")
    authorization = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        authorization = "Basic " + base64.b64encode(pair.encode()).decode()
    return Proxy(parts.hostname, port or _PORTS["http"], authorization)


def _proxy_for(parts: SplitResult, host: str, port: int, proxy: str | None) -> Proxy | None:
    if Endpoint(parts.geturl(), host).is_loopback:
        return None
    if proxy is not None:
        return parse_proxy(proxy)
    found = getproxies_environment()
    url = found.get(parts.scheme) or found.get("all")
    if not url or proxy_bypass_environment(f"{host}:{port}", found):
        return None
    return parse_proxy(url)


def _authority(host: str, port: int | None) -> str:
    where = f"[{host}]" if ":" in host else host
    return where if port is None else f"{where}:{port}"


def _header(name: str, value: str) -> str:
    if _TOKEN.fullmatch(name) is None:
        raise BadRequestError(f"A header cannot be named {name!r}.")
    if _BAD_VALUE.search(value) is not None or not all(ord(char) < 256 for char in value):
        raise BadRequestError(f"The value of the header {name!r} holds a character that cannot be sent.")
    return f"{name}: {value.strip()}"
