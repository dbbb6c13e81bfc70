"""
Where base URLs come from: a list, a file, a function, a DNS name, or the worker's own node.

Reading may block, so it is done in a thread. Knows nothing of what is done with the addresses.
"""

from __future__ import annotations

import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from nemo_llm_stage.client.endpoints.address import Endpoint, in_url, parse_base_url
from nemo_llm_stage.client.endpoints.node import node_ip
from nemo_llm_stage.errors import ConfigError

BaseURL: TypeAlias = str | Sequence[str] | Callable[[], Iterable[str]]
"""What a user writes: one address, several, or a function that returns some."""

FILE_POLL_S = 2.0
FUNCTION_POLL_S = 10.0
DNS_POLL_S = 30.0
"""Seconds between two reads. Source: Kubernetes' headless services keep their records for 30 s."""

TOLD_POLL_S = 0.5

NODE_LOCAL = "node-local"
SERVERS = "servers"
"""What `base_url` says of the servers that the job itself starts."""

_NODE_IP = "{node_ip}"
_DNS = "dns+"
MAX_FILE_BYTES = 1024 * 1024


class Source(ABC):
    """
    Gives the addresses of the servers.

    Attributes:
        poll_s: Seconds between two reads; None where the addresses never change.
        is_own: Whether each worker has servers of its own, which it shares with no other worker.
    """

    poll_s: float | None = None
    is_own = False

    @abstractmethod
    def read(self) -> tuple[Endpoint, ...]:
        """
        Return the addresses as they are now; none may be there. May block.

        Raises:
            ConfigError: They cannot be read, or one is no usable URL.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return where the addresses come from, for messages."""

    def tell(self, urls: Sequence[str]) -> None:  # noqa: B027 - most sources know their addresses
        """Take the addresses of the servers that the job starts, where they are what is meant."""


def source_of(base_url: BaseURL) -> Source:
    """
    Return the source that a user's `base_url` means.

    Raises:
        ConfigError: It is empty, or cannot be an address.
    """
    if callable(base_url):
        return FunctionSource(base_url)
    if isinstance(base_url, str):
        return _source_of_text(base_url.strip())
    sources = [source_of(item) for item in base_url]
    if not sources:
        raise ConfigError("base_url is empty; write the server's address, e.g. http://localhost:8000/v1.")
    if all(isinstance(source, FixedSource) for source in sources):
        return FixedSource([endpoint for source in sources for endpoint in source.read()])
    return SeveralSources(sources)


def _source_of_text(text: str) -> Source:
    scheme = text.partition(":")[0].lower()
    if text == SERVERS:
        return ToldSource()
    if text == NODE_LOCAL:
        return NodeSource(f"http://{_NODE_IP}:8000/v1")
    if _NODE_IP in text:
        return NodeSource(text)
    if scheme.startswith(_DNS):
        return DNSSource(text)
    if scheme == "file" or (text.endswith(".txt") and "://" not in text):
        return FileSource(text)
    return FixedSource([parse_base_url(text)])


class FixedSource(Source):
    """Addresses that do not change."""

    def __init__(self, endpoints: Iterable[Endpoint]) -> None:
        self._endpoints = tuple(endpoints)

    def read(self) -> tuple[Endpoint, ...]:
        """Return them."""
        return self._endpoints

    def describe(self) -> str:
        """Return the addresses."""
        return ", ".join(endpoint.base_url for endpoint in self._endpoints)


class FileSource(Source):
    """
    A text file with one URL a line, which may change at any time. ``#`` begins a comment.

    Args:
        path: ``file:PATH`` or the path itself.
    """

    poll_s = FILE_POLL_S

    def __init__(self, path: str) -> None:
        path = path[len("file:") :] if path.lower().startswith("file:") else path
        path = path.removeprefix("//")  # file:///path
        if not path:
            raise ConfigError("base_url names no file; write for instance file:/path/endpoints.txt.")
        self._path = Path(path)
        self._seen: tuple[int, int, int] | None = None
        self._endpoints: tuple[Endpoint, ...] = ()

    def read(self) -> tuple[Endpoint, ...]:
        """Return the addresses in the file, in order; looked at only where its time, size or inode has changed."""
        try:
            stat = self._path.stat()
            seen = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
            if seen != self._seen:
                with self._path.open("rb") as file:
                    text = file.read(MAX_FILE_BYTES + 1)
                self._endpoints = self._parse(text)
                self._seen = seen
        except OSError as error:
            raise ConfigError(
                f"base_url names the file {self._path}, which cannot be read: {error.strerror}."
            ) from None
        return self._endpoints

    def describe(self) -> str:
        """Return the path."""
        return f"the file {self._path}"

    def _parse(self, data: bytes) -> tuple[Endpoint, ...]:
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(f"{self._path} is longer than {MAX_FILE_BYTES:,} bytes; it is no list of servers.")
        endpoints: list[Endpoint] = []
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            url = line.partition("#")[0].strip()
            try:
                endpoints += [parse_base_url(url)] if url else []
            except ConfigError as error:
                raise ConfigError(f"{self._path}, line {number}: {error}") from None
        return tuple(dict.fromkeys(endpoints))


class FunctionSource(Source):
    """
    A user's function that returns the addresses; called in a thread about every 10 s.

    Args:
        function: Returns URLs. It is pickled with the client.
    """

    poll_s = FUNCTION_POLL_S

    def __init__(self, function: Callable[[], Iterable[str]]) -> None:
        self._function = function

    def read(self) -> tuple[Endpoint, ...]:
        """Return what the function returns."""
        try:
            urls: Any = self._function()
            urls = [urls] if isinstance(urls, str) else list(urls)
        except Exception as error:
            raise ConfigError(f"{self.describe()} raised {type(error).__name__}: {error}") from error
        return tuple(dict.fromkeys(map(parse_base_url, urls)))

    def describe(self) -> str:
        """Return the function's name."""
        return f"the function {getattr(self._function, '__qualname__', type(self._function).__name__)}"


class DNSSource(Source):
    """
    A host name with many addresses, e.g. of a headless Kubernetes service. Each address is a server.

    Args:
        url: ``dns+http://name:port/v1``.
    """

    poll_s = DNS_POLL_S

    def __init__(self, url: str) -> None:
        if not url.lower().startswith("dns+http://"):
            raise ConfigError(
                f"base_url {url!r} must begin with dns+http://: a certificate is for a name, not for its addresses."
            )
        self._named = parse_base_url(url[len(_DNS) :])
        parts = urlsplit(self._named.base_url)
        self._port, self._path = parts.port or 80, parts.path

    def read(self) -> tuple[Endpoint, ...]:
        """Return a server for each address that the name has now, sorted; none where the name is unknown."""
        try:
            found = socket.getaddrinfo(self._named.host, self._port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno in {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", None)}:
                return ()
            raise ConfigError(f"{self.describe()} cannot be looked up: {error.strerror}.") from None
        hosts = sorted({str(address[0]) for *_, address in found})
        return tuple(parse_base_url(f"http://{in_url(host)}:{self._port}{self._path}") for host in hosts)

    def describe(self) -> str:
        """Return the name."""
        return f"the DNS name {self._named.host}"


class NodeSource(Source):
    """
    The server on the worker's own node.

    Args:
        url: With ``{node_ip}`` in place of the host.
    """

    is_own = True

    def __init__(self, url: str) -> None:
        self._url = url
        parse_base_url(url.replace(_NODE_IP, "127.0.0.1"))

    def read(self) -> tuple[Endpoint, ...]:
        """Return the one address, as the node that this runs on has it."""
        return (parse_base_url(self._url.replace(_NODE_IP, in_url(node_ip()))),)

    def describe(self) -> str:
        """Return the pattern."""
        return f"{self._url} on this node"


class ToldSource(Source):
    """The servers that the job starts: whoever starts them tells their addresses. Is pickled with what was told."""

    poll_s = TOLD_POLL_S

    def __init__(self) -> None:
        self._endpoints: tuple[Endpoint, ...] = ()

    def read(self) -> tuple[Endpoint, ...]:
        """Return what was told last."""
        return self._endpoints

    def describe(self) -> str:
        """Return what they are."""
        return "the servers that the job starts"

    def tell(self, urls: Sequence[str]) -> None:
        """See `Source`."""
        self._endpoints = tuple(map(parse_base_url, urls))


class SeveralSources(Source):
    """
    Sources of several kinds together.

    Args:
        sources: At least one.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = tuple(sources)
        polls = [source.poll_s for source in sources if source.poll_s is not None]
        self.poll_s = min(polls, default=None)
        self.is_own = all(source.is_own for source in sources)

    def read(self) -> tuple[Endpoint, ...]:
        """Return the addresses of all."""
        return tuple(endpoint for source in self._sources for endpoint in source.read())

    def describe(self) -> str:
        """Return where all of them are."""
        return " and ".join(source.describe() for source in self._sources)

    def tell(self, urls: Sequence[str]) -> None:
        """See `Source`."""
        for source in self._sources:
            source.tell(urls)
