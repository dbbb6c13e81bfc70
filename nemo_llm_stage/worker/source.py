"""
Where a worker's rows come from: the input, or the files that are committed already.

Knows files and schemas; knows nothing of answers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pyarrow as pa

from nemo_llm_stage.dataset.bad_input import BadInput
from nemo_llm_stage.dataset.cursor import Cursors
from nemo_llm_stage.dataset.files import InputFile
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.json_text import fields_before, parse
from nemo_llm_stage.dataset.jsonl import LINE_FIELD, LineParser
from nemo_llm_stage.dataset.plan import Partition
from nemo_llm_stage.dataset.read import read_partition
from nemo_llm_stage.dataset.unchanged import check_unchanged
from nemo_llm_stage.worker.chunk import ROWS_PER_CHUNK
from nemo_llm_stage.worker.failed_rows import to_columns
from nemo_llm_stage.worker.spec import WorkerSpec

_LOOK_S = 2.0
"""Seconds after which a file in an object store is looked at again. The end of the run looks at all of them."""


class RowSource:
    """
    Reads rows for a worker. Safe for several threads.

    Args:
        spec: Of the worker.
        output: The output folder.

    Attributes:
        output_schema: Of the rows that are written: the input's columns, for an output of lines also each row's line
            as it was read, and the generated columns.
    """

    def __init__(self, spec: WorkerSpec, output: OutputFolder) -> None:
        self._spec = spec
        self._output = output
        lines = [LINE_FIELD] if output.format == "jsonl" else []
        metadata = spec.input_schema.metadata
        self._input_schema = pa.schema([*spec.input_schema, *lines], metadata=metadata)
        self.output_schema = pa.schema([*self._input_schema, *spec.stage.fields], metadata=metadata)
        self._cursors = Cursors(ROWS_PER_CHUNK)
        self._next_look_s: dict[str, float] = {}

    def input_rows(self, part: Partition, bad: list[BadInput]) -> Iterator[pa.Table]:
        """
        Yield the rows of a partition, or of a piece of one, in tables of at most `ROWS_PER_CHUNK` rows.

        Args:
            part: What to read.
            bad: Input that cannot be read is added here, if the job skips it.

        Raises:
            InputError: The input cannot be read, and the job does not skip it; or it is not what was planned.
        """
        self._check_unchanged(part.file)
        on_bad = bad.append if self._spec.settings.on_bad_input == "skip" else None
        return read_partition(
            part, self._input_schema, rows_per_chunk=ROWS_PER_CHUNK, on_bad=on_bad, cursors=self._cursors
        )

    def committed_rows(self, partition: Partition, name: str) -> Iterator[pa.Table]:
        """
        Yield the rows of a committed file with the schema of the output.

        JSON has no types, so the input columns of a JSONL file are read from the input again.

        Args:
            partition: The file's.
            name: Of the file.
        """
        if self._output.format == "parquet":
            yield from self._output.read(name, self.output_schema, rows_per_chunk=ROWS_PER_CHUNK)
            return
        if self._spec.stage.changes_num_rows:  # no row of the output tells which row of the input it was made from
            yield from self._committed_lines(partition, name)
            return
        rows = self._output.rows(name)
        for table in self.input_rows(partition, []):
            answers = to_columns(list(itertools.islice(rows, table.num_rows)), self._spec.stage.fields)
            yield pa.table([*table.columns, *answers], schema=self.output_schema)

    def _committed_lines(self, partition: Partition, name: str) -> Iterator[pa.Table]:
        """Yield the committed rows of a JSONL file with the input's fields as they stand there."""
        lines = self._output.lines(name)
        first = self._spec.stage.fields[0].name
        while chunk := [line for _, line in itertools.islice(lines, ROWS_PER_CHUNK)]:
            parts = [fields_before(line, first) for line in chunk]
            rows = [parse(line) for line in chunk]
            if partition.format == "jsonl":
                numbered = list(enumerate(parts))
                inputs = LineParser(partition.path).to_table(numbered, self._spec.input_schema).columns
            else:
                inputs = to_columns(rows, self._spec.input_schema)
            answers = to_columns(rows, self._spec.stage.fields)
            yield pa.table([*inputs, pa.array(parts, LINE_FIELD.type), *answers], schema=self.output_schema)

    def _check_unchanged(self, file: InputFile | None) -> None:
        """Refuse an input file that is not what was planned. In a store, where a look is a call, a recent one does."""
        now_s = time.monotonic()
        if file is not None and now_s >= self._next_look_s.get(file.path, now_s):
            check_unchanged([file])
            if "://" in file.path:
                self._next_look_s[file.path] = now_s + _LOOK_S

    def close(self) -> None:
        """Close the files that are open."""
        self._cursors.close()
