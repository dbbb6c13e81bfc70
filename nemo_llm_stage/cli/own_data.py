"""
The data that `nemo-llm-stage init` can offer: files in the working directory, and their columns of text.

Reads the first rows of a file. Knows names, schemas and rows; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.dataset.files import find_files
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.errors import InputError
from nemo_llm_stage.job.planning import plan_input
from nemo_llm_stage.suggest import did_you_mean

MAX_OFFERED = 8
_NUM_ROWS = 50
_SUFFIXES = (".parquet", ".jsonl", ".ndjson", ".csv", ".tsv", ".arrow", ".jsonl.gz", ".jsonl.zst", ".csv.gz")
"""Of files that are offered; plain ``.json`` is mostly something else."""


@dataclass(frozen=True, slots=True)
class OwnData:
    """
    Input files, as far as a job that asks about them needs to know them.

    Attributes:
        columns: All of them.
        texts: The columns of text, those with the longest texts first, each with a text as an example.
    """

    columns: tuple[str, ...]
    texts: dict[str, str]

    def check(self, column: str) -> None:
        """
        Refuse a column that is not there.

        Raises:
            InputError: It is not; the message names the nearest one.
        """
        if column not in self.columns:
            hint = did_you_mean(column, self.columns) or f"the columns are {', '.join(self.columns)}"
            raise InputError(f"the input has no column {column!r}; {hint}{'' if hint.endswith('?') else '.'}")


def data_files(folder: Path) -> list[str]:
    """Return the data files in `folder`, and a pattern for each folder of such files in it."""
    here = sorted(path for path in folder.iterdir() if not path.name.startswith((".", "_")))
    files = [path.name for path in here if path.is_file() and _is_data(path)]
    patterns = [pattern for path in here if path.is_dir() for pattern in _patterns(path)]
    return [*files, *patterns][:MAX_OFFERED]


def _patterns(folder: Path) -> Iterator[str]:
    if (folder / ".nemo_llm_stage").exists():  # the output of a job
        return
    try:
        names = [path.name.lower() for path in folder.iterdir() if path.is_file()]
    except OSError:
        return
    yield from (f"{folder.name}/*{suffix}" for suffix in _SUFFIXES if any(name.endswith(suffix) for name in names))


def _is_data(path: Path) -> bool:
    return path.name.lower().endswith(_SUFFIXES)


def look_at_data(inputs: str) -> OwnData:
    """
    Return the columns of the input, from its schema and first rows.

    Raises:
        InputError: It cannot be read, or has no columns.
    """
    plan = plan_input(find_files(inputs), JobSettings(scan_input="sample"), lambda _: None)
    if not plan.schema.names:
        raise InputError(f"the rows of {inputs!r} have no columns.")
    names = [field.name for field in plan.schema if _is_text(field.type)]
    tables = read_partition(plan.partitions[0], plan.schema, rows_per_chunk=_NUM_ROWS, on_bad=lambda _: None)
    rows = next(iter(tables), plan.schema.empty_table()).select(names)
    texts = {name: [text for text in rows.column(name).to_pylist() if text] for name in names}
    longest = sorted(names, key=lambda name: -_mean_length(texts[name]))
    return OwnData(tuple(plan.schema.names), {name: next(iter(texts[name]), "") for name in longest})


def _mean_length(texts: Sequence[str]) -> float:
    return sum(map(len, texts)) / len(texts) if texts else 0.0


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
