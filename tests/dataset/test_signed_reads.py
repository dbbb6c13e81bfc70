"""Whole files of a folder are read, many at once, whatever the store."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_llm_stage.dataset.signed_reads import SignedReads
from nemo_llm_stage.dataset.storage import Folder

FILES = {f"part-{number}": b"bytes of %d" % number for number in range(20)} | {"a +%c": b"odd name"}


def filled(url: str) -> Folder:
    folder = Folder(url)
    folder.make()
    for name, data in FILES.items():
        folder.fs.pipe_file(folder.path(name), data)
    return folder


def read_all(folder: Folder) -> dict[str, bytes]:
    with SignedReads(folder) as reads, ThreadPoolExecutor(8) as pool:
        return dict(zip(FILES, pool.map(reads.read, FILES), strict=True))


def calls(server: str) -> Counter[str]:
    with urllib.request.urlopen(f"{server}/calls") as response:
        return Counter(json.load(response))


def test_files_of_a_local_folder_are_read(tmp_path: Path) -> None:
    assert read_all(filled(str(tmp_path / "out"))) == FILES


@pytest.mark.parametrize("kind", ["bucket", "unsigned"])
def test_files_are_read_from_stores_that_take_signed_urls_and_from_others(
    kind: str, make_bucket: Callable[..., str]
) -> None:
    assert read_all(filled(f"{make_bucket(kind)}/out")) == FILES


def test_a_file_in_a_store_costs_one_call(s3_server: str, make_bucket: Callable[..., str]) -> None:
    folder = filled(f"{make_bucket()}/out")
    calls(s3_server)
    read_all(folder)
    assert calls(s3_server) == {"GET out": len(FILES)}


def test_a_file_that_is_not_there_is_told_and_the_others_are_read(make_bucket: Callable[..., str]) -> None:
    folder = filled(f"{make_bucket()}/out")
    with SignedReads(folder) as reads:
        with pytest.raises(FileNotFoundError):
            reads.read("part-99")
        assert reads.read("part-1") == FILES["part-1"]
