"""
What a client sends beside the request itself: the key, headers, query parameters, and the proxy it goes through.

All of it may be named instead of given, and is read on the worker. Knows where values lie and how they are sent; opens
no connection.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit
from urllib.request import getproxies_environment

from nemo_llm_stage.client.hiding import Secrets
from nemo_llm_stage.client.secret import (
    HARMLESS_HEADERS,
    HARMLESS_QUERY,
    HIDDEN,
    KeySource,
    Value,
    ValueSource,
    sources_of,
)
from nemo_llm_stage.errors import ConfigError

AUTHORIZATION = "authorization"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 §5.6.2: what a header's name is made of."""


_HEADERS = {
    "user-agent": "nemo-llm-stage",
    "accept": "application/json, text/event-stream",
    "content-type": "application/json",
}


@dataclass(frozen=True, slots=True)
class Sent:
    """
    What is sent with every request, read and ready. Its repr shows none of it.

    Attributes:
        key: The API key; None for none.
        auth: The header that holds the key, by lower-case name; empty without a key.
        headers: The user's, by lower-case name.
        query: The user's query parameters.
        proxy: URL; None for what the environment says.
        secrets: What of all this must not show.
        encoded_query: `query` as it stands in a URL.
    """

    key: str | None = field(repr=False)
    auth: Mapping[str, str] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    proxy: str | None = field(repr=False)
    secrets: Secrets
    encoded_query: str = field(default="", repr=False)

    @property
    def all_headers(self) -> dict[str, str]:
        """The headers of every request, by lower-case name."""
        return {**_HEADERS, **self.auth, **self.headers}

    @property
    def has_key(self) -> bool:
        """Whether a key is sent, or a header of the user's that may hold one."""
        return self.key is not None or any(name not in HARMLESS_HEADERS for name in self.headers)

    def add_query(self, url: str) -> str:
        """Return `url` with the query parameters."""
        if not self.encoded_query:
            return url
        return f"{url}{'&' if '?' in url else '?'}{self.encoded_query}"


class Credentials:
    """
    Where all that a client sends beside the request comes from.

    Args:
        key: The API key's source.
        api_key_header: Name of the header for the key. ``Authorization`` holds ``Bearer KEY``, any other the key alone.
        headers: Sent with every request.
        query: Added to the query of every request's URL.
        proxy: URL of a proxy; None for what the environment says.

    Raises:
        ConfigError: A value is of the wrong type, or `api_key_header` is no header's name or among `headers`.
    """

    def __init__(
        self,
        key: KeySource,
        *,
        api_key_header: str = "Authorization",
        headers: Mapping[str, Value] | None = None,
        query: Mapping[str, Value] | None = None,
        proxy: Value | None = None,
    ) -> None:
        if not isinstance(api_key_header, str) or _TOKEN.fullmatch(api_key_header) is None:
            raise ConfigError(f"api_key_header is {api_key_header!r}, which is no header's name, e.g. api-key.")
        self.api_key_header = api_key_header.lower()
        self._key = key
        self._headers = {
            name.lower(): source for name, source in sources_of(headers, "headers", HARMLESS_HEADERS).items()
        }
        self._query = sources_of(query, "query", HARMLESS_QUERY)
        self._proxy = None if proxy is None else ValueSource(proxy, "proxy", is_harmless=_is_open_proxy(proxy))

    def read(self) -> Sent:
        """
        Return the values.

        Raises:
            ConfigError: A variable or file is missing or empty; named in the message.
        """
        key = self._key.read()
        headers = {name: source.read() for name, source in self._headers.items()}
        query = {name: source.read() for name, source in self._query.items()}
        proxy = None if self._proxy is None else self._proxy.read()
        secrets = [] if key is None else [key]
        secrets += [headers[name] for name, source in self._headers.items() if source.is_secret]
        secrets += [query[name] for name, source in self._query.items() if source.is_secret]
        for url in (proxy, *getproxies_environment().values()):
            secrets += _passwords_in(url)
        return Sent(key, self._auth(key), headers, query, proxy, Secrets(secrets), urlencode(query, quote_via=quote))

    def read_again(self, used: str | None) -> Sent | None:
        """Return the values as they are now, if there is a key other than the one that was `used`; else None."""
        try:
            sent = self.read()
        except ConfigError:  # a file is just being replaced, or is gone: the server's words tell more
            return None
        return sent if sent.key != used else None

    def _auth(self, key: str | None) -> dict[str, str]:
        if key is None:
            return {}
        return {self.api_key_header: f"Bearer {key}" if self.api_key_header == AUTHORIZATION else key}

    def __repr__(self) -> str:
        header = "" if self.api_key_header == AUTHORIZATION else f", api_key_header={self.api_key_header!r}"
        shown = {"headers": self._headers, "query": self._query}
        given = "".join(f", {name}={values!r}" for name, values in shown.items() if values)
        proxy = "" if self._proxy is None else f", proxy={self._proxy!r}"
        return f"{self._key!r}{header}{given}{proxy}"


def has_password(proxy: str) -> bool:
    """Whether a proxy's URL holds a user or a password."""
    return "@" in proxy


def secrets_of_request(secrets: Secrets, extra_kwargs: Mapping[str, Any] | None) -> Secrets:
    """Return a client's `secrets`, and those among the headers and query parameters of the request itself."""
    if not extra_kwargs or not ("extra_headers" in extra_kwargs or "extra_query" in extra_kwargs):
        return secrets
    places = (("extra_headers", HARMLESS_HEADERS), ("extra_query", HARMLESS_QUERY))
    own = [
        str(value)
        for place, harmless in places
        if isinstance(values := extra_kwargs.get(place), Mapping)
        for name, value in values.items()
        if str(name).lower() not in harmless
    ]
    return secrets.plus(own) if own else secrets


def without_request_secrets(value: Any) -> Any:
    """Return a JSON value with the ``extra_headers`` and ``extra_query`` in it as they may be written down."""
    if isinstance(value, list):
        return [without_request_secrets(item) for item in value]
    if not isinstance(value, dict):
        return value
    shown = {name: without_request_secrets(item) for name, item in value.items()}
    for place, harmless in (("extra_headers", HARMLESS_HEADERS), ("extra_query", HARMLESS_QUERY)):
        if isinstance(shown.get(place), dict):
            shown[place] = {
                name: item if str(name).lower() in harmless else HIDDEN for name, item in shown[place].items()
            }
    return shown


def _is_open_proxy(proxy: Value) -> bool:
    return isinstance(proxy, str) and not has_password(proxy)


def _passwords_in(url: str | None) -> list[str]:
    """The password in a proxy's URL, and how it is sent: with the user, in Base64."""
    if not url or "@" not in url:
        return []
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
    except ValueError:
        return [url]
    if parts.password is None:
        return [parts.username or ""]
    user, password = unquote(parts.username or ""), unquote(parts.password)
    return [password, f"{user}:{password}"]
