"""Put-if-absent: of any number of writers one wins, on a disk and on a real S3 server, and on stores that are less."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.errors import ConfigError

MakeBucket = Callable[..., str]
NUM_WRITERS = 8


def race(url: str, name: str, size: int) -> tuple[list[int], bytes]:
    """Let writers publish `name` at once, each bytes of its own; return who won, and what is there."""
    barrier = threading.Barrier(NUM_WRITERS)

    def publish(number: int) -> bool:
        folder = Folder(url)
        scratch = folder.scratch("tmp", ".bin")
        scratch.write_bytes(bytes([number]) * size)
        barrier.wait()
        try:
            return folder.publish(scratch, name)
        finally:
            scratch.unlink(missing_ok=True)

    with ThreadPoolExecutor(NUM_WRITERS) as pool:
        is_first = list(pool.map(publish, range(NUM_WRITERS)))
    return [number for number, first in enumerate(is_first) if first], Folder(url).read(name)


@pytest.mark.parametrize("size", [10, 8 << 20])
def test_of_many_writers_at_once_one_wins_on_a_disk(tmp_path: Path, size: int) -> None:
    """Whole, and nothing is left beside it."""
    winners, data = race(str(tmp_path), "file", size)
    assert [bytes([number]) * size for number in winners] == [data]
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("size", [10, 8 << 20])
def test_of_many_writers_at_once_one_wins_on_s3(make_bucket: MakeBucket, size: int) -> None:
    """By conditional PUTs."""
    url = make_bucket()
    for name in map(str, range(5 if size < 100 else 1)):
        winners, data = race(url, name, size)
        assert [bytes([number]) * size for number in winners] == [data]


@pytest.mark.parametrize("kind", ["terse", "busy", "unconditional"])
def test_a_later_writer_changes_nothing_on_other_stores(make_bucket: MakeBucket, kind: str) -> None:
    """Whatever words they have for it: one that does not say what failed, that is busy at first, that cannot at all."""
    folder = Folder(f"{make_bucket(kind)}/out")
    assert folder.publish_bytes(b"first", "file", scratch_sub="tmp")
    assert not folder.publish_bytes(b"second", "file", scratch_sub="tmp")
    assert folder.read("file") == b"first"


@pytest.mark.parametrize("kind", ["kind", "terse"])
def test_a_store_that_keeps_conditions_is_not_asked_first_whether_a_file_is_there(
    make_bucket: MakeBucket, s3_server: str, kind: str
) -> None:
    """It is known from its first refusal on, whichever words that has."""
    folder = Folder(f"{make_bucket(kind)}/out")
    assert folder.publish_bytes(b"first", "file", scratch_sub="tmp")
    calls(s3_server)
    assert folder.publish_bytes(b"second", "another", scratch_sub="tmp")
    assert not folder.publish_bytes(b"third", "file", scratch_sub="tmp")
    assert calls(s3_server) == {"PUT out": 2}


@pytest.mark.parametrize("kind", ["terse", "busy"])
def test_of_many_writers_at_once_one_wins_on_other_stores(make_bucket: MakeBucket, kind: str) -> None:
    """As far as they know conditions."""
    winners, data = race(make_bucket(kind), "file", 10)
    assert [bytes([number]) * 10 for number in winners] == [data]


def test_without_conditions_writers_at_once_may_all_write_but_only_whole_files(make_bucket: MakeBucket) -> None:
    """The documented limit: what is there is one writer's, whole."""
    winners, data = race(make_bucket("unconditional"), "file", 1 << 20)
    assert data in [bytes([number]) * (1 << 20) for number in winners]


def test_a_bucket_that_is_not_there_is_told(make_bucket: MakeBucket) -> None:
    """Not hidden behind a look whether the file is there."""
    make_bucket()
    with pytest.raises(FileNotFoundError, match="bucket"):
        Folder("s3://no-such-bucket/out").publish_bytes(b"x", "file", scratch_sub="tmp")


class _OddStore(MemoryFileSystem):
    """Another writer is always first, and it says so by an error of its own, as gcsfs may after a file in parts."""

    protocol = "odd"

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self.pipe_file(rpath, b"first")
        raise RuntimeError("412")


def test_a_later_writer_changes_nothing_where_a_library_raises_errors_of_its_own() -> None:
    """Not every one raises OSError."""
    fsspec.register_implementation("odd", _OddStore, clobber=True)
    folder = Folder("odd://bucket/out")
    assert not folder.publish_bytes(b"second", "file", scratch_sub="tmp")
    assert folder.read("file") == b"first"


@pytest.mark.parametrize(("protocol", "extra", "module"), [("gs", "gcs", "gcsfs"), ("abfs", "azure", "adlfs")])
def test_a_store_whose_package_is_not_installed_names_it(protocol: str, extra: str, module: str) -> None:
    """With the command that installs it."""
    if find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(ConfigError, match=rf"pip install 'nemo-llm-stage\[{extra}\]'"):
        Folder(f"{protocol}://bucket/out")


def calls(s3_server: str) -> dict[str, int]:
    """The calls since the last look, by kind and folder."""
    with urllib.request.urlopen(f"{s3_server}/calls") as response:
        found: dict[str, int] = json.load(response)
        return found
