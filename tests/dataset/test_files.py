"""Inputs become a sorted list of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemo_llm_stage.dataset.files import find_files, find_input
from nemo_llm_stage.errors import ConfigError, InputError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "b.jsonl",
        "a.parquet",
        "sub/c.jsonl.gz",
        "sub/d.ndjson.zst",
        "notes.txt",
        "_hidden/e.jsonl",
        ".f.jsonl",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def names(folder: Path, inputs: object) -> list[str]:
    return [str(Path(file.path).relative_to(folder)) for file in find_files(inputs)]  # type: ignore[arg-type]


def test_a_folder_gives_its_data_files_in_order(folder: Path) -> None:
    """Subfolders count; other kinds and hidden names do not."""
    assert names(folder, folder) == ["a.parquet", "b.jsonl", "sub/c.jsonl.gz", "sub/d.ndjson.zst"]


def test_a_file_named_twice_is_read_once(folder: Path) -> None:
    """A glob and a name may overlap."""
    assert names(folder, [folder / "*.jsonl", folder / "b.jsonl"]) == ["b.jsonl"]


def test_a_glob_goes_into_subfolders(folder: Path) -> None:
    """Two stars go down."""
    assert "sub/c.jsonl.gz" in names(folder, f"{folder}/**/*.gz")


def test_a_changed_file_has_another_version(folder: Path) -> None:
    """The identity follows the content's time."""
    import os

    before = find_files(folder / "b.jsonl")
    os.utime(folder / "b.jsonl", (1, 1))
    assert find_files(folder / "b.jsonl") != before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.parquet", "no file or folder"),
        ("*.xml", "no Parquet, JSONL, CSV or Arrow file matches"),
        ("notes.txt", "cannot tell the format"),
    ],
)
def test_what_names_nothing_is_refused(folder: Path, name: str, words: str) -> None:
    """The message names the pattern."""
    with pytest.raises(InputError, match=words) as caught:
        find_files(str(folder / name))
    assert name in str(caught.value)


def test_an_unknown_protocol_is_refused() -> None:
    """No traceback of fsspec."""
    with pytest.raises(ConfigError, match="cannot open"):
        find_files("nope://x/y.parquet")


@pytest.mark.parametrize(
    "name", ["a.PARQUET", "a.parq", "a.JSONL", "a.jsonl.bz2", "a.ndjson.xz", "a.json", "a.json.gz", "a[1].jsonl"]
)
def test_names_as_the_world_writes_them_are_data(tmp_path: Path, name: str) -> None:
    """Named as a file and found in a folder; a bracket is no pattern where there is such a file."""
    (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path, tmp_path) == names(tmp_path, tmp_path / name) == [name]


def test_what_is_passed_over_is_counted(folder: Path) -> None:
    """By reason."""
    (folder / "noending").write_bytes(b"x")
    (folder / "dataset_info.json").write_bytes(b"{}")
    (folder / "link").symlink_to(folder / "sub", target_is_directory=True)
    (notice,) = find_input(folder).notices
    for words in (
        "1 with the ending .txt",
        "1 without an ending",
        "2 hidden",
        "1 folders that are links",
        "1 with the ending .json",
    ):
        assert words in notice


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("t/_delta_log/00000000000000000000.json", "table of Delta: name this folder itself"),
        ("t/metadata/v1.metadata.json", "table of Iceberg: name this folder itself"),
        ("_versions/1.manifest", "table of Lance.*pip install pylance"),
    ],
)
def test_files_of_a_table_are_not_read_one_by_one(tmp_path: Path, name: str, words: str) -> None:
    """Its loose files hold rows that are deleted."""
    for path in (tmp_path / name, tmp_path / "data" / "a.parquet"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with pytest.raises(InputError, match=words):
        find_files(tmp_path)


@pytest.mark.parametrize("name", ["a.orc", "a.avro", "a.xlsx"])
def test_another_format_is_refused_with_the_command_that_converts_it(tmp_path: Path, name: str) -> None:
    """In one line."""
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"convert it to Parquet first: python -c"):
        find_files(tmp_path / name)
