"""
The settings of a job: one schema for a job file, the command line and Python, and what the settings build.

Knows the settings' names, types and defaults; reading them is `config`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, create_model, model_validator

from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient
from nemo_llm_stage.config.answers import Section
from nemo_llm_stage.config.clients import ClientConfig, LocalClientConfig
from nemo_llm_stage.config.columns import ColumnConfig, ColumnSettings, with_defaults
from nemo_llm_stage.config.job_settings import JobSettings, setting_types
from nemo_llm_stage.config.prices import ListPrice, common_price
from nemo_llm_stage.config.servers import Servers, has_servers, with_servers
from nemo_llm_stage.rows.query import GIVE_UP_AFTER_S
from nemo_llm_stage.stage.multi import MultiColumnStage
from nemo_llm_stage.stage.stage import Stage

__all__ = ["ClientConfig", "JobConfig"]


if TYPE_CHECKING:
    _JobFields = ColumnSettings
else:
    _defaults = {field.name: field.default for field in fields(JobSettings)}
    _fields = {name: (hint, _defaults[name]) for name, hint in setting_types().items()}
    _JobFields = create_model("_JobFields", __base__=ColumnSettings, **_fields)
    _JobFields.section = JobSettings.section


class JobConfig(_JobFields):
    """
    A whole job: the keys of a job file, and with dashes the options of the command line.

    The fields of `JobSettings` are fields of this model too; read them from `settings`.

    Attributes:
        input: Parquet, JSONL, CSV, TSV or Arrow files (text also compressed), globs or folders; paths or URLs.
        output: Folder to write; made if it does not exist.
        columns: Several columns in one pass, each with the settings of a column; the job's own are their defaults.
        keep_if: Expression over columns and answers. Rows for which it is false are dropped and counted.
        servers: Inference servers that the job starts, keeps up and ends with it. A client without `base_url` asks
            them.
        give_up_after: Seconds to keep retrying a row after transient failures; 0 fails it at once.
    """

    section: ClassVar[str] = "Run"

    input: Annotated[str | tuple[str, ...], Section("Input and prompt")]
    output: Annotated[str, Section("Input and prompt")]
    columns: Annotated[tuple[ColumnConfig, ...], Section("Input and prompt")] = ()
    keep_if: Annotated[str | None, Section("Answer")] = None
    servers: Servers | None = None
    give_up_after: float = Field(default=GIVE_UP_AFTER_S, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _fill_up_columns(cls, settings: Any) -> Any:
        settings = with_servers(settings)
        has_columns = isinstance(settings, dict) and isinstance(settings.get("columns"), list | tuple)
        return with_defaults(settings) if has_columns and settings["columns"] else settings

    @model_validator(mode="after")
    def _is_whole(self) -> JobConfig:
        if not self.columns:
            self.check_whole()
        if self.servers is None and any(map(has_servers, self._clients)):
            raise ValueError("base_url: servers means the servers that the job starts; say in `servers` what they are")
        if self.servers is not None and not any(map(has_servers, self._clients)):
            raise ValueError("servers are started, but no client asks them; write base_url: servers, or leave it out")
        self.settings  # noqa: B018 - raises where a value is out of bounds
        return self

    @property
    def settings(self) -> JobSettings:
        """How the job runs; with list prices where none are given and the provider's are known."""
        settings = JobSettings(**{name: getattr(self, name) for name in setting_types()})
        price = self.list_price
        return settings if price is None else replace(settings, price_input=price.input, price_output=price.output)

    @property
    def list_price(self) -> ListPrice | None:
        """What the job costs by its provider's list; None where prices are given, or no list is known."""
        if any(getattr(self, name) is not None for name in ("price_input", "price_output")):
            return None
        servers = [(getattr(client, "base_url", None), model) for client, model in self.clients_and_models]
        if not all(isinstance(url, str) and model for url, model in servers):
            return None
        return common_price((str(url), str(model)) for url, model in servers)

    @property
    def _columns(self) -> Sequence[ColumnSettings]:
        return self.columns or (self,)

    @property
    def max_concurrent_requests(self) -> int:
        """Sum of the clients' settings of this name; of one that adapts, a guess."""
        return sum(client.planned_limit for client in self._clients)

    def total_limit(self) -> int:
        """Return the most requests in flight, over all clients, servers and actors."""
        num_servers = self.servers.count if self.servers is not None else 1
        limits = ((client, client.total_limit(self.settings.planned_actors)) for client in self._clients)
        return sum(limit * num_servers if has_servers(client) else limit for client, limit in limits)

    @property
    def _clients(self) -> list[ClientConfig]:
        """The clients of all columns, each once."""
        clients: list[ClientConfig] = []
        for column in self._columns:
            if column.client not in clients:
                clients.append(column.client)
        return clients

    @property
    def clients_and_models(self) -> list[tuple[ClientConfig, str | None]]:
        """The clients and models that the columns use, each pair once."""
        pairs: list[tuple[ClientConfig, str | None]] = []
        for column in self._columns:
            if (column.client, column.model) not in pairs:
                pairs.append((column.client, column.model))
        return pairs

    @property
    def starts_model(self) -> bool:
        """Whether `open_stage` starts an embedded model, which takes a while."""
        return any(isinstance(client, LocalClientConfig) for client in self._clients)

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
