"""Where addresses come from."""

from __future__ import annotations

import pickle
import socket
from pathlib import Path

import pytest

from nemo_llm_stage.client.endpoints.node import node_ip
from nemo_llm_stage.client.endpoints.source import source_of
from nemo_llm_stage.errors import ConfigError


def urls(base_url: object) -> list[str]:
    """What a base_url means now."""
    return [endpoint.base_url for endpoint in source_of(base_url).read()]  # type: ignore[arg-type]


@pytest.mark.parametrize("written", ["file:{path}", "file://{path}", "{path}"])
def test_a_file_has_one_address_a_line(tmp_path: Path, written: str) -> None:
    """Comments and empty lines are ignored."""
    path = tmp_path / "endpoints.txt"
    path.write_text("# the first rack\nhttp://a:8000\n\n  http://b:8000/v1  # new\nhttp://a:8000\n")
    assert urls(written.format(path=path)) == ["http://a:8000/v1", "http://b:8000/v1"]


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """Also one of the same length that replaces it."""
    path = tmp_path / "endpoints.txt"
    path.write_text("http://a:8000\n")
    source = source_of(str(path))
    assert [endpoint.host for endpoint in source.read()] == ["a"]
    new = tmp_path / "new"
    new.write_text("http://b:8000\n")
    new.replace(path)
    assert [endpoint.host for endpoint in source.read()] == ["b"]


BAD_FILES = [
    (b"http://a:8000\nlocalhost:8000\n", "line 2.*http://"),
    (b"\xff\xfe\x00", "line 1"),
    (b"x" * (1024 * 1024 + 1), "no list of servers"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=["bad line", "no text", "too long"])
def test_a_file_that_is_no_list_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    """The message names the file and the line."""
    path = tmp_path / "endpoints.txt"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=message):
        urls(str(path))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """By its name."""
    with pytest.raises(ConfigError, match=r"none\.txt"):
        urls(str(tmp_path / "none.txt"))


def test_a_function_returns_addresses() -> None:
    """One or many."""
    assert urls(lambda: "http://a") == urls(lambda: iter(["http://a"])) == ["http://a/v1"]


def test_a_function_that_fails_is_told_by_its_name() -> None:
    """With what it raised."""

    def find_servers() -> list[str]:
        raise KeyError("rack")

    with pytest.raises(ConfigError, match=r"find_servers.*KeyError.*rack"):
        urls(find_servers)


def test_each_address_of_a_name_is_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """IPv6 too, each once, with the port and path of the name."""

    def look_up(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        assert host == "vllm.svc"
        return [(0, 0, 0, "", (address, port)) for address in ("10.0.0.2", "fd00::1", "10.0.0.1", "10.0.0.2")]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert urls("dns+http://vllm.svc:8000/v1") == [
        "http://10.0.0.1:8000/v1",
        "http://10.0.0.2:8000/v1",
        "http://[fd00::1]:8000/v1",
    ]


def test_a_real_name_is_looked_up() -> None:
    """This machine's own."""
    assert "http://127.0.0.1:8000/v1" in urls("dns+http://localhost:8000")


def test_a_name_of_many_addresses_has_no_certificate() -> None:
    """TLS needs the name itself."""
    with pytest.raises(ConfigError, match="certificate"):
        urls("dns+https://vllm.svc/v1")


@pytest.mark.parametrize(
    ("written", "port"), [("node-local", 8000), ("http://{node_ip}:8001/v1", 8001)], ids=["word", "pattern"]
)
def test_the_own_node_has_a_server(written: str, port: int) -> None:
    """Found out where it is read, i.e. on the worker."""
    source = source_of(written)
    assert source.is_own
    assert urls(written) == [f"http://{node_ip()}:{port}/v1"]


def test_several_kinds_go_together(tmp_path: Path) -> None:
    """They are read as often as the quickest wants."""
    path = tmp_path / "endpoints.txt"
    path.write_text("http://b\n")
    source = source_of(["http://a", str(path), lambda: ["http://c"]])
    assert [endpoint.host for endpoint in source.read()] == ["a", "b", "c"]
    assert source.poll_s == 2.0


def test_none_is_not_enough() -> None:
    """A client needs a server."""
    with pytest.raises(ConfigError, match="base_url"):
        source_of([])


def test_started_servers_are_told() -> None:
    """Among others too; a copy has what was told before it was made."""
    source = source_of(["servers", "http://other:8000/v1"])
    source.tell(["http://one:1/v1"])
    copy = pickle.loads(pickle.dumps(source))
    source.tell(["http://two:2/v1", "http://one:1/v1"])
    assert [endpoint.base_url for endpoint in source.read()] == [
        *("http://two:2/v1", "http://one:1/v1"),
        "http://other:8000/v1",
    ]
    assert [endpoint.host for endpoint in copy.read()] == ["one", "other"]
