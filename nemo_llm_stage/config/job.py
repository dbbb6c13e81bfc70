"""
The settings of a job: one schema for a job file, the command line and Python, and what the settings build.

Knows the settings' names, types and defaults; reading them is `config`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from pydantic import Field, model_validator

from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.config.clients import ClientConfig
from nemo_llm_stage.config.columns import ColumnConfig, ColumnSettings, with_defaults
from nemo_llm_stage.dataset.journal import FLUSH_INTERVAL_S
from nemo_llm_stage.rows.query import GIVE_UP_AFTER_S
from nemo_llm_stage.stage.base import Stage
from nemo_llm_stage.stage.multi import MultiColumnStage

__all__ = ["ClientConfig", "JobConfig"]


class JobConfig(ColumnSettings):
    """
    A whole job. The keys of a job file, and of the command line with dashes.

    Attributes:
        input: Files, globs or folders of Parquet or JSONL.
        output: Folder.
        columns: Several columns in one pass, each with the settings of a column; the job's own are their defaults.
        keep_if: Expression over columns and answers; rows for which it is false are dropped.
        give_up_after: Seconds that a row is asked again after failures that may pass; 0 fails it at once.
        engine: ``ray`` or ``local``.
        actors: Workers, in actors of Ray, each with a client and a limit of its own.
        num_cpus_per_actor: Reserved in Ray.
        address: Ray cluster; None takes ``RAY_ADDRESS`` or starts Ray here.
        output_format: ``parquet`` or ``jsonl``.
        rows_per_partition: Rows of one output file; None takes about 64 files of 1,000 to 10,000 rows.
        scan_input: How much of a JSONL input is read for its types beforehand.
        on_bad_input: A damaged file or a broken line: ``stop``, or ``skip`` leaves it out and writes it down.
        max_failed_rows: Stops the run at so many failed rows (an int), or at this fraction (0.05, from 200 rows on).
        keep_raw: Keep the raw answers beside the output, so that a changed parser needs no request.
        flush_interval: Seconds between the journal's objects on an object store: younger answers die with a worker.
    """

    input: str | tuple[str, ...]
    output: str
    columns: tuple[ColumnConfig, ...] = ()
    keep_if: str | None = None
    give_up_after: float = Field(default=GIVE_UP_AFTER_S, ge=0)
    engine: Literal["ray", "local"] = "ray"
    actors: int = Field(default=1, ge=1)
    num_cpus_per_actor: float = Field(default=0.5, gt=0)
    address: str | None = None
    output_format: Literal["parquet", "jsonl"] = "parquet"
    rows_per_partition: int | None = Field(default=None, ge=1)
    scan_input: Literal["auto", "full", "sample"] = "auto"
    on_bad_input: Literal["stop", "skip"] = "stop"
    max_failed_rows: int | float | None = 0.05
    keep_raw: bool = False
    flush_interval: float = Field(default=FLUSH_INTERVAL_S, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_up_columns(cls, settings: Any) -> Any:
        has_columns = isinstance(settings, dict) and isinstance(settings.get("columns"), list | tuple)
        return with_defaults(settings) if has_columns and settings["columns"] else settings

    @model_validator(mode="after")
    def _is_whole(self) -> JobConfig:
        if not self.columns:
            self.check_whole()
        return self

    @property
    def _columns(self) -> Sequence[ColumnSettings]:
        return self.columns or (self,)

    @property
    def num_at_once(self) -> int:
        """Requests in flight at once, for each actor."""
        return sum(client.num_at_once for client in self._clients)

    @property
    def _clients(self) -> list[ClientConfig]:
        """The clients of all columns, each once."""
        clients: list[ClientConfig] = []
        for column in self._columns:
            if column.client not in clients:
                clients.append(column.client)
        return clients

    @contextmanager
    def open_stage(self) -> Iterator[Stage]:
        """
        Build the stage; for ``local``, with the embedded model running until the block ends.

        Raises:
            ConfigError: A setting cannot work.
        """
        self.make_stage()  # refuses wrong settings before a model is started for them
        with ExitStack() as stack:
            yield self.make_stage([stack.enter_context(client.open()) for client in self._clients])

    def make_stage(self, clients: Sequence[tuple[AsyncLLMClient, str | None]] = ()) -> Stage:
        """
        Return the stage.

        Args:
            clients: What the settings' clients, each once, have become, and the model's name where it is known only
                then; none makes a stage that renders prompts but has nobody to ask.

        Raises:
            ConfigError: A setting cannot work.
        """
        clients = clients or [(AsyncHTTPClient("http://nobody.invalid/v1"), None)] * len(self._clients)
        stages = []
        for column in self._columns:
            client, model = clients[self._clients.index(column.client)]
            keep_if = None if self.columns else self.keep_if
            name = column.model or model or "local"
            stages.append(column.make_column(client, name, give_up_after_s=self.give_up_after, keep_if=keep_if))
        return MultiColumnStage(stages, keep_if=self.keep_if) if self.columns else stages[0]
