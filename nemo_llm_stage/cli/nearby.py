"""
The servers that `nemo-llm-stage init` can offer: on this machine, and where the environment says that one is.

Asks each address for its list of models, all at once and with a short timeout. Knows the usual ports of the usual
servers; sends no prompt.
"""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from nemo_llm_stage.client.endpoints.address import parse_base_url
from nemo_llm_stage.client.secret import ValueSource
from nemo_llm_stage.errors import ConfigError

NEARBY_TIMEOUT_S = 0.7
REMOTE_TIMEOUT_S = 10.0
_MAX_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Kind:
    """
    A kind of server.

    Attributes:
        name: What people call it.
        max_concurrent_requests: Requests in flight that it takes as it is usually started; ``auto`` finds it out.
    """

    name: str
    max_concurrent_requests: int | Literal["auto"]


_OWNERS = {
    "library": Kind("Ollama", 4),
    "llamacpp": Kind("llama.cpp", 4),
    "vllm": Kind("vLLM", "auto"),
    "sglang": Kind("SGLang", "auto"),
    "organization_owner": Kind("LM Studio", 4),
}
"""``owned_by`` in the list of models → the kind of server."""

_OTHER = Kind("a server", "auto")
_PORTS = {11434: "Ollama", 8000: "vLLM", 8080: "llama.cpp", 30000: "SGLang", 1234: "LM Studio"}
_KINDS = {kind.name: kind for kind in _OWNERS.values()}


@dataclass(frozen=True, slots=True)
class FoundServer:
    """
    A server that answers.

    Attributes:
        base_url: As a job file names it.
        kind: Of server.
        models: Their names; those that cannot write text come last.
        api_key_env: The variable that holds its key; None for no key.
    """

    base_url: str
    kind: Kind
    models: tuple[str, ...]
    api_key_env: str | None = None


def find_servers(ports: Iterable[int] = tuple(_PORTS)) -> list[FoundServer]:
    """
    Return the servers on this machine that answer within a second and have a model.

    Looks at the usual ports, and at ``OLLAMA_HOST`` if that names this machine.

    Args:
        ports: To look at.
    """
    urls = dict.fromkeys([*_ollama_host(), *(f"http://localhost:{port}/v1" for port in ports)])
    with ThreadPoolExecutor(len(urls)) as threads:
        found = list(threads.map(_look_nearby, urls))
    return [server for server in found if server is not None and server.models]


def server_of_environment() -> FoundServer | None:
    """Return the server that ``OPENAI_BASE_URL`` names, if it is set and answers; the key is ``OPENAI_API_KEY``."""
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        return None
    try:
        return look_at(url, "OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None)
    except ConfigError:
        return None


def look_at(url: str, api_key_env: str | None = None, *, timeout_s: float = REMOTE_TIMEOUT_S) -> FoundServer:
    """
    Return the server at `url`, with ``/v1`` added to it where its list of models is there.

    Args:
        url: With or without ``/v1``.
        api_key_env: The variable that holds the key.
        timeout_s: For each of the two places.

    Raises:
        ConfigError: Nothing answers there, it requires a key, or it has no list of models.
    """
    if not url.strip().startswith(("http://", "https://")) or "@" in url:
        raise ConfigError(
            f"{url!r} is no address of a server; write one like http://localhost:8000/v1, without a password."
        )
    base_url, key = parse_base_url(url).base_url, _key(api_key_env)
    problem = ""
    for place in dict.fromkeys([base_url, base_url.removesuffix("/v1") + "/v1"]):
        try:
            entries = _models_of(place, key, timeout_s)
        except urllib.error.HTTPError as error:
            problem = _words_of_status(error.code, place, api_key_env)
            if error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
                break
        except urllib.error.URLError as error:
            why = getattr(error.reason, "strerror", None) or error.reason
            problem = problem or f"no server answers at {place}: {why}."
        except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException) as error:
            problem = problem or f"no list of models at {place}/models: {error or type(error).__name__}."
        else:
            names = sorted((str(entry["id"]) for entry in entries), key=lambda name: "embed" in name.lower())
            return FoundServer(place, _kind(place, entries), tuple(names), api_key_env)
    raise ConfigError(problem)


def unseen_server(url: str, api_key_env: str | None = None) -> FoundServer:
    """Return a server that was not looked at."""
    return FoundServer(url, _OTHER, (), api_key_env)


def _look_nearby(url: str) -> FoundServer | None:
    try:
        return look_at(url, timeout_s=NEARBY_TIMEOUT_S)
    except ConfigError:
        return None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A key is for the server that was named."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """Follow none: the answer is an error with its status."""


def _key(api_key_env: str | None) -> str:
    """Return the key that a variable holds; empty where it holds none: the server may want none."""
    if api_key_env is None:
        return ""
    source = ValueSource({"env": api_key_env}, "--api-key-env")
    return source.read() if os.environ.get(api_key_env) else ""


def _models_of(base_url: str, key: str, timeout_s: float) -> Sequence[Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{base_url}/models", headers=headers)  # noqa: S310 - the scheme is checked
    is_here = request.host.partition(":")[0] in {"localhost", "127.0.0.1"}
    proxies = [urllib.request.ProxyHandler({})] if is_here else []
    opener = urllib.request.build_opener(_NoRedirects, *proxies)
    with opener.open(request, timeout=timeout_s) as answer:
        entries = orjson.loads(answer.read(_MAX_BYTES))["data"]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "id" in entry for entry in entries):
        raise ValueError("the answer is no list of models")
    return entries


def _kind(base_url: str, entries: Sequence[Any]) -> Kind:
    owner = str(entries[0].get("owned_by", "")) if entries else ""
    return _OWNERS.get(owner) or _KINDS.get(_PORTS.get(urlsplit(base_url).port or 0, ""), _OTHER)


def _words_of_status(status: int, place: str, api_key_env: str | None) -> str:
    if status not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return f"no list of models at {place}/models: HTTP {status}."
    if api_key_env is None:
        return f"{place} requires a key: put it into an environment variable and give --api-key-env NAME."
    if not os.environ.get(api_key_env):
        return f"{place} requires a key, and the environment variable {api_key_env} is not set."
    return f"{place} refuses the key in the environment variable {api_key_env} (HTTP {status})."


def _ollama_host() -> list[str]:
    """The address in ``OLLAMA_HOST``, which may be a host, a port or both; none where it is another machine."""
    value = os.environ.get("OLLAMA_HOST", "").strip().removeprefix("http://").rstrip("/")
    host, _, port = value.rpartition(":")
    is_here = host in {"", "localhost", "127.0.0.1", "0.0.0.0"}  # noqa: S104 - where Ollama listens
    return [f"http://localhost:{port}/v1"] if is_here and port.isdecimal() else []
