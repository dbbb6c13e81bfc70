"""The embedded corpus: real texts, the same ones every time, each named once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from nemo_llm_stage.embedded.corpus import SCHEMA, python_docs, write_python_docs
from nemo_llm_stage.errors import ConfigError


@pytest.mark.slow
def test_there_are_thousands_of_texts_and_each_has_its_own_id() -> None:
    """Enough for a real job, and no row is ambiguous."""
    ids = python_docs(max_chars=None)["id"].to_pylist()
    assert len(ids) > 2000
    assert sorted(set(ids)) == ids


def test_every_row_says_where_it_is_from() -> None:
    """A text comes with its name, kind, source and licence; nothing is null."""
    table = python_docs(max_chars=None)
    assert table.schema == SCHEMA
    assert [0] * table.num_columns == [column.null_count for column in table.columns]
    assert {"PSF-2.0"} == set(table["license"].to_pylist())
    assert {"module", "class", "function", "topic"} == set(table["kind"].to_pylist())


@pytest.mark.parametrize(
    ("id_", "kind", "beginning"),
    [
        ("json.dumps", "function", "Serialize ``obj`` to a JSON formatted ``str``."),
        ("textwrap.TextWrapper", "class", "Object for wrapping/filling text."),
        ("topic:assert", "topic", 'The "assert" statement'),
    ],
)
def test_a_name_has_its_own_documentation(id_: str, kind: str, beginning: str) -> None:
    """Texts are not mixed up."""
    (row,) = (row for row in python_docs(max_chars=None).to_pylist() if row["id"] == id_)
    assert kind == row["kind"]
    assert row["text"].startswith(beginning)


def test_texts_keep_to_the_length_that_was_asked_for() -> None:
    """What is too short to ask about never comes; what is too long is left out."""
    lengths = [len(text) for text in python_docs(max_chars=300)["text"].to_pylist()]
    assert min(lengths) >= 80
    assert max(lengths) <= 300


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    """A job that is run again on more rows has answered the first ones already."""
    small, large = (set(python_docs(num_rows)["id"].to_pylist()) for num_rows in (20, 60))
    assert len(small) == 20
    assert small < large


def test_another_seed_draws_other_rows() -> None:
    """The sample is drawn, not cut from the start of the alphabet."""
    assert python_docs(20, seed=1)["id"] != python_docs(20, seed=2)["id"]


@pytest.mark.slow
def test_another_process_gets_the_same_rows() -> None:
    """A resumed job finds its input unchanged."""
    code = "from nemo_llm_stage.embedded.corpus import python_docs; print(*python_docs(50)['id'].to_pylist())"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert python_docs(50)["id"].to_pylist() == printed.split()


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_files_hold_the_same_rows_whatever_their_format(tmp_path: Path, suffix: str) -> None:
    """The suffix says the format; folders are made."""
    path = tmp_path / "new" / f"docs{suffix}"
    num_rows = write_python_docs(path, 30)
    if suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [orjson.loads(line) for line in path.read_bytes().splitlines()]
    assert num_rows == 30
    assert python_docs(30).to_pylist() == rows


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    """Nobody gets Parquet in a file named .csv."""
    with pytest.raises(ConfigError, match=r"\.parquet or \.jsonl"):
        write_python_docs(tmp_path / "docs.csv", 3)


def test_asking_for_texts_shorter_than_there_are_is_an_error() -> None:
    """An empty corpus would only fail later and further away."""
    with pytest.raises(ConfigError, match="allow longer texts"):
        python_docs(max_chars=10)
