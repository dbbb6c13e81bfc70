"""What a user writes as base_url, and where requests go."""

from __future__ import annotations

import pytest

from nemo_llm_stage.client.endpoints.address import parse_base_url
from nemo_llm_stage.errors import ConfigError

URLS = [
    ("http://localhost:8000", "http://localhost:8000/v1"),
    ("http://localhost:8000/", "http://localhost:8000/v1"),
    ("http://localhost:8000/v1", "http://localhost:8000/v1"),
    (" http://localhost:8000/v1/ ", "http://localhost:8000/v1"),
    ("http://localhost/v1/chat/completions", "http://localhost/v1"),
    ("http://localhost/v1/completions", "http://localhost/v1"),
    ("http://localhost/models", "http://localhost/v1"),
    ("https://API.example.com/openai/v1", "https://api.example.com/openai/v1"),
    ("http://[::1]:8000", "http://[::1]:8000/v1"),
    ("http://10.0.0.1/a b", "http://10.0.0.1/a%20b"),
    ("http://bücher.example", "http://xn--bcher-kva.example/v1"),
]


@pytest.mark.parametrize(("written", "meant"), URLS)
def test_base_urls_are_made_sound(written: str, meant: str) -> None:
    """With or without /v1, slashes and routes, the same server is meant."""
    assert parse_base_url(written).base_url == meant


BAD_URLS = [
    "localhost:8000",
    "ftp://localhost",
    "http://",
    "",
    "http://host:port",
    "http://host:99999",
    "http://user:secret@host",
    "http://host/v1?key=secret",
    "http://host/v1#top",
    "http://bad host/v1",
    "http://[::1",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_unusable_urls_are_refused_with_an_example(url: str) -> None:
    """The message says what to write, and repeats no secret."""
    with pytest.raises(ConfigError, match="http://localhost:8000/v1") as caught:
        parse_base_url(url)
    assert "secret" not in str(caught.value)


HOSTS = [
    ("localhost", True, True),
    ("127.0.0.1", True, True),
    ("[::1]", True, True),
    ("192.168.1.5", False, True),
    ("gpu-17", False, True),
    ("vllm.default.svc.cluster.local", False, True),
    ("8.8.8.8", False, False),
    ("api.example.com", False, False),
]


@pytest.mark.parametrize(("host", "is_loopback", "is_private"), HOSTS)
def test_hosts_are_known_by_their_looks(host: str, is_loopback: bool, is_private: bool) -> None:
    """This machine and private networks are told from the open internet."""
    endpoint = parse_base_url(f"http://{host}")
    assert (endpoint.is_loopback, endpoint.is_private) == (is_loopback, is_private)


def test_a_query_has_a_place_of_its_own() -> None:
    """The message says which; what it holds is not repeated."""
    with pytest.raises(ConfigError, match="put parameters into query") as caught:
        parse_base_url("https://res.openai.azure.com/openai/deployments/d?api-version=2024-10-21&key=secret")
    assert "secret" not in str(caught.value)
