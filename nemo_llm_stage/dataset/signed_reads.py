"""
Reads many whole files of an S3 bucket at once, by URLs that the store's library signs.

Such a read costs a third of the CPU of one by s3fs, which has one event loop for all threads: with 64 at once that loop
is what a check of many small files waits for. Where a store does not take signed URLs, files are read as always.
Knows files; knows nothing of what is in them.
"""

from __future__ import annotations

import threading
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from types import TracebackType
from typing import Self
from urllib.parse import SplitResult, urlsplit

from nemo_llm_stage.dataset.storage import Folder

EXPIRES_S = 60
"""A signed URL is used at once."""

_TIMEOUT_S = 30.0
_S3 = {"s3", "s3a"}


class SignedReads:
    """
    Reads files of one folder. Safe for several threads, each of which has a connection of its own.

    Args:
        folder: In any store; only those of S3 are read by signed URLs.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        protocols = folder.fs.protocol
        self._is_on = bool(_S3 & set([protocols] if isinstance(protocols, str) else protocols))
        self._of_thread = threading.local()
        self._connections: list[HTTPConnection] = []

    def __enter__(self) -> Self:
        """Do nothing; the first read connects."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        for connection in self._connections:
            connection.close()

    def read(self, name: str) -> bytes:
        """
        Return the file's bytes.

        Raises:
            OSError: It cannot be read.
        """
        data = self._fetch(name) if self._is_on else None
        return self._folder.read(name) if data is None else data

    def _fetch(self, name: str) -> bytes | None:
        """Return the bytes; None, and from now on for every file, if the store does not give them."""
        try:
            url = urlsplit(self._folder.fs.sign(self._folder.path(name), expiration=EXPIRES_S))
        except Exception:  # noqa: BLE001 - a store's library may raise anything where it has no key
            self._is_on = False
            return None
        for _ in range(2):  # a store may have closed a connection that was not used for a while
            try:
                data = self._get(url)
            except (OSError, HTTPException):
                self._of_thread.connection = None
            else:
                self._is_on &= data is not None
                return data
        self._is_on = False
        return None

    def _get(self, url: SplitResult) -> bytes | None:
        connection = getattr(self._of_thread, "connection", None) or self._connect(url)
        connection.request("GET", f"{url.path}?{url.query}")
        answer = connection.getresponse()
        data: bytes = answer.read()
        return data if answer.status == 200 else None

    def _connect(self, url: SplitResult) -> HTTPConnection:
        kind = HTTPSConnection if url.scheme == "https" else HTTPConnection
        connection = self._of_thread.connection = kind(url.netloc, timeout=_TIMEOUT_S)
        self._connections.append(connection)
        return connection
