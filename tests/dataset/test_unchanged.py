"""Input that is not what it was planned over is named; many files of a folder in a store are found by listing it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable

import pytest

from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.storage import Folder
from nemo_llm_stage.dataset.unchanged import check_unchanged
from nemo_llm_stage.errors import InputError


def calls(server: str) -> dict[str, int]:
    """The calls since the last look, by kind and folder."""
    with urllib.request.urlopen(f"{server}/calls") as response:
        found: dict[str, int] = json.load(response)
    return found


@pytest.mark.parametrize("num_files", [3, 25])
def test_a_file_in_a_store_that_was_changed_or_removed_is_named(
    s3_server: str, make_bucket: Callable[..., str], num_files: int
) -> None:
    """As one of a few, and as one of many."""
    folder = Folder(f"{make_bucket()}/in")
    for number in range(num_files):
        folder.fs.pipe_file(folder.path(f"{number:02}.jsonl"), b'{"a": 1}\n')
    files = find_files(folder.url)
    calls(s3_server)
    check_unchanged(files)
    assert calls(s3_server).get("HEAD in", 0) == (3 if num_files == 3 else 0)
    folder.fs.pipe_file(folder.path("01.jsonl"), b'{"a": 2}\n')
    with pytest.raises(InputError, match=r"changed while the job ran: '[^']*/in/01\.jsonl'\."):
        check_unchanged(files)
    folder.remove("02.jsonl")
    with pytest.raises(InputError, match=r"/in/01\.jsonl', '[^']*/in/02\.jsonl'\."):
        check_unchanged(files)
