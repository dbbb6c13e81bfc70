"""
The `servers` section of a job file: inference servers that the job starts, and ends with it.

Knows the settings' names; processes are the servers room's.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from nemo_llm_stage.client.endpoints.source import SERVERS
from nemo_llm_stage.config.answers import Settings
from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.servers.plan import ServerPlan, check_command
from nemo_llm_stage.suggest import did_you_mean
from nemo_llm_stage.text import names_a_secret

_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PATH = re.compile(r"/[!-~]*")
MAX_PORT = 65535


def _words(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(shlex.split(re.sub(r"\\\r?\n", " ", value)))
    return tuple(map(str, value)) if isinstance(value, list | tuple) else value


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]


def _texts(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {str(name): "" if text is None else str(text) for name, text in value.items()}


class Servers(Settings):
    """
    Inference servers that the job starts. With `engine: ray` Ray places them, with `engine: local` they run here.

    Attributes:
        command: What starts a server; ``{port}``, ``{model}``, ``{gpu_ids}``, ``{num_gpus}``, ``{host}`` and
            ``{number}`` stand for what it gets. For a server on several nodes also ``{node_rank}``, ``{num_nodes}``,
            ``{head_ip}`` and ``{head_port}``.
        worker_command: Of a server on several nodes: what is started on all but the first; the same if not given.
        model: For ``{model}``: a name or a path. The job's `model` if not given.
        count: How many servers.
        num_gpus: GPUs of a server, on each of its nodes; 0 for a server on CPUs.
        num_cpus: CPUs that Ray reserves for a server, on each of its nodes.
        num_nodes: Nodes of one server, for tensor or pipeline parallelism over several; needs `engine: ray`.
        port: Port of the first server; each further one has the next. Any that is free if not given.
        env: Variables for the servers, no secrets: those are set where the servers start, e.g. where `ray start` runs.
        health_path: Path that answers with 200 once a server takes requests; where there is no such path,
            ``/v1/models`` counts.
        start_timeout: Seconds from the start of a server's process until it must be healthy.
        stop_timeout: Seconds that a server has to end by itself, from SIGTERM on.
        max_restarts: How often a server that ends is started again. Ten healthy minutes make the count begin anew.
        log_folder: Folder of the servers' logs, on their nodes; by default a temporary one that is removed where
            nothing went wrong.
    """

    section: ClassVar[str] = "Servers that the job starts"

    command: Words
    worker_command: Words = ()
    model: str | None = None
    count: int = Field(default=1, ge=1)
    num_gpus: float = Field(default=1, ge=0)
    num_cpus: float = Field(default=0, ge=0)
    num_nodes: int = Field(default=1, ge=1)
    port: int | None = Field(default=None, ge=1, le=MAX_PORT)
    env: Annotated[dict[str, str], BeforeValidator(_texts)] = Field(default_factory=dict)
    health_path: str = "/health"
    start_timeout: float = Field(default=1800.0, gt=0)
    stop_timeout: float = Field(default=10.0, ge=0)
    max_restarts: int = Field(default=3, ge=0)
    log_folder: str | None = None

    @model_validator(mode="after")
    def _can_start(self) -> Servers:
        if not self.command:
            raise ValueError("command is empty; write for instance vllm serve {model} --port {port}")
        for words in (self.command, self.worker_command):
            _check_words(words)
        if not any("{port}" in word for word in self.command) and self.port is None:
            raise ValueError("command does not say where to listen: write {port} into it, e.g. --port {port}")
        if self.port is not None and self.port + self.count - 1 > MAX_PORT:
            raise ValueError(f"from port {self.port} on there are not {self.count} ports: {MAX_PORT} is the last")
        if not _PATH.fullmatch(self.health_path):
            raise ValueError(f"health_path {self.health_path!r} is no path; write for instance /health")
        for name, text in self.env.items():
            if names_a_secret(name):
                raise ValueError(f"env.{name} may be a secret; set it where the servers start")
            if not name or "=" in name or "\0" in name + text:
                raise ValueError(f"env: {name!r} cannot be a variable")
        return self

    def plan(self, model: str | None = None) -> ServerPlan:
        """
        Return what one of the servers is; `model` is the job's.

        Raises:
            ConfigError: The command wants a model, and there is none.
        """
        if not (self.model or model) and any("{model}" in word for word in (*self.command, *self.worker_command)):
            raise ConfigError("the servers' command has {model}, and no model is set; write e.g. model: org/model.")
        return ServerPlan(
            words=self.command,
            worker_words=self.worker_command,
            model=self.model or model or "",
            num_gpus=self.num_gpus,
            num_cpus=self.num_cpus,
            num_nodes=self.num_nodes,
            port=self.port,
            env=self.env,
            health_path=self.health_path,
            start_timeout_s=self.start_timeout,
            stop_timeout_s=self.stop_timeout,
            max_restarts=self.max_restarts,
        )


def _check_words(words: Sequence[str]) -> None:
    check_command(words)
    if words and _ASSIGNMENT.match(words[0]):
        raise ValueError(f"{words[0].partition('=')[0]}: a command has no variables before it; write them into env")
    for word in words:
        name = word.partition("=")[0]
        is_option, is_assignment = word.startswith("--"), _ASSIGNMENT.match(word) is not None
        if (is_option or is_assignment) and names_a_secret(name.strip("-").replace("-", "_")):
            raise ValueError(
                f"{name}: a key does not belong into a job file; set the server's variable for it, "
                "e.g. VLLM_API_KEY or HF_TOKEN, where the servers start"
            )
        if "\0" in word:
            raise ValueError(f"{word!r}: a command cannot hold a null character")


def with_servers(settings: Any) -> Any:
    """Return a job's settings in which a client without `base_url` asks the servers that the job starts, if any."""
    if not isinstance(settings, Mapping) or not isinstance(settings.get("servers"), Mapping):
        return settings
    filled = {**settings, "client": _asking(settings.get("client", {}))}
    if isinstance(settings.get("columns"), list | tuple):
        filled["columns"] = [
            {**column, "client": _asking(column["client"])}
            if isinstance(column, Mapping) and "client" in column
            else column
            for column in settings["columns"]
        ]
    return filled


def _asking(client: Any) -> Any:
    is_http = isinstance(client, Mapping) and client.get("type", "http") == "http"
    return {**client, "base_url": SERVERS} if is_http and not client.get("base_url") else client


def has_servers(client: Any) -> bool:
    """Return whether a client asks the servers that the job starts."""
    base_url = getattr(client, "base_url", None)
    return base_url == SERVERS or (isinstance(base_url, tuple) and SERVERS in base_url)


def make_servers(settings: Mapping[str, Any], source: str) -> Servers:
    """
    Return the checked settings of servers that stand by themselves.

    Raises:
        ConfigError: One line for each thing that is wrong.
    """
    try:
        return Servers.model_validate(settings)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors(include_url=False)]
        raise ConfigError(f"{source} cannot be served:\n  " + "\n  ".join(lines)) from error


def _explain(detail: Any) -> str:
    name = ".".join(map(str, detail["loc"]))
    if detail["type"] == "extra_forbidden":
        hint = did_you_mean(name, Servers.model_fields) or f"known are {', '.join(Servers.model_fields)}"
        return f"unknown key {name!r}; {hint}"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}" if name else message
