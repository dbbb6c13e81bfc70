"""
What a stage hands over to other rooms: a table in a program or a notebook, and a dataset of Ray Data.

Imports each of them when it is called. Knows nothing of how they work.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    import ray.data

    from nemo_llm_stage.job.preview import Preview
    from nemo_llm_stage.stage.stage import Stage

T = TypeVar("T")


class Doors:
    """The methods of a `Stage` that other rooms carry out."""

    def process(
        self,
        table: T,
        *,
        overwrite: bool = False,
        progress: bool | None = None,
        cache_dir: str | Path | None = None,
    ) -> T:
        """
        Return `table` with this stage's columns added. Does not change `table`.

        May be called from a plain program, a notebook with a running loop, a Ray worker, and from several threads at
        once: all calls share one limit, and the rows of one call use permits that another leaves free. If the waiting
        thread is interrupted, e.g. by Ctrl-C, the call's requests are cancelled.

        Args:
            table: pandas or polars DataFrame, Arrow table, `datasets.Dataset`, DuckDB relation or RecordBatchReader
                with the columns that the prompts use; the result is of the same kind. Any other object with
                ``__arrow_c_stream__`` gives an Arrow table. A DataFrame of pandas has the counts of the call in
                ``attrs["nemo_llm_stage"]``.
            overwrite: Whether columns of the same names are made again, so that a notebook's cell can be run twice.
            progress: Whether to show progress; None shows it in a notebook.
            cache_dir: Folder that keeps each answer as it comes, so that a call that was interrupted, or is made again
                with more rows, sends only what is new. A server that is down is then waited for, as in a job.

        Raises:
            InputError: A column is missing.
            ConfigError: A column to be added is there already, and `overwrite` is not set.
            ConnectionFailedError: No server can be reached. Looked for before the first rows are sent.
            FatalError: The server refuses every request: wrong key, no such model.
            RunError: The first rows were all refused. Nothing is raised for single rows.
        """
        from nemo_llm_stage.interactive import process

        result: T = process(self._stage, table, overwrite=overwrite, progress=progress, cache_dir=cache_dir)
        return result

    def preview(self, table: Any, num_rows: int = 5, *, dry_run: bool = False) -> Preview:
        """
        Return the exact prompts of a few rows spread over `table`, and their answers; a notebook shows them.

        Args:
            table: As for `process`.
            num_rows: How many rows to send.
            dry_run: Whether to render the prompts only, and send nothing.

        Raises:
            InputError: A column is missing.
            ConnectionFailedError: No server can be reached.
            FatalError: The server refuses every request.
        """
        from nemo_llm_stage.interactive import preview

        return preview(self._stage, table, num_rows, dry_run=dry_run)

    def map(self, dataset: ray.data.Dataset, **options: Any) -> ray.data.Dataset:
        """Return a Ray Data Dataset with this stage's columns; `options` are those of `cluster.dataset.map_dataset`."""
        from nemo_llm_stage.cluster.dataset import map_dataset

        return map_dataset(self._stage, dataset, **options)

    @property
    def _stage(self) -> Stage:
        return cast("Stage", self)
