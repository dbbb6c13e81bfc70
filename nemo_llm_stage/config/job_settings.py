"""
How a job runs: one frozen object from the job file, the command line or Python to the worker.

Every setting, its default, its bounds and its words stand here and nowhere else. Standard library only, since
`import nemo_llm_stage` must stay light: a job file checks the same annotations with pydantic.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from functools import cache, wraps
from numbers import Integral, Real
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    TypedDict,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from annotated_types import Ge, Gt

from nemo_llm_stage.errors import ConfigError

_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """
    How a job runs. Times are in seconds.

    Attributes:
        engine: ``ray`` runs the workers in Ray actors; ``local`` runs them in this process, without Ray.
        actors: Number of workers. They divide the servers, or share their limits where the servers are fewer.
            ``auto`` is one for each server, as far as the Ray cluster has CPUs, and one without Ray. On Ray, a worker
            starts on the node that runs its server, if there is one.
        num_cpus_per_actor: CPUs that Ray reserves for each actor.
        address: Ray cluster to join; by default ``RAY_ADDRESS``, or a Ray started on this machine.
        output_format: File format of the output: ``parquet`` or ``jsonl``.
        rows_per_partition: Rows of each output file; by default about 64 files of 1,000 to 10,000 rows.
        scan_input: How much of a JSONL input is read beforehand to find the columns' types and to check every line:
            ``full`` and ``auto`` read all of it, ``sample`` only the first 4 MiB of each file.
        max_failed_rows: Stop the job when more rows have failed than this number (5), or than this fraction of the
            finished rows (0.05, from 200 rows on). At the end a job of any size with more failed rows has failed: exit
            code 3, no ``_SUCCESS``; the output stays. null allows any number.
        max_cost: Dollars that the job may cost, over all its runs; needs `price_input` or `price_output`. At a limit
            the job sends no more requests, waits for those in flight, and ends with exit code 4. Run it again with a
            higher limit to resume it.
        max_requests: Requests that the job may send, failed ones included, over all its runs.
        max_output_tokens: Output tokens that the job may take, over all its runs. Those of the requests in flight come
            on top, as for `max_cost`.
        max_duration: Seconds that a run may take.
        requests_per_minute: Most requests a minute, over all actors.
        tokens_per_minute: Most tokens of prompts and answers a minute, over all actors.
        on_drift: What to do when rates of failed, refused, unparsed or cut-off rows or of wasted requests, the length
            of the answers, or the share of answers in another script (Latin, Cyrillic, Chinese …), leave the range of
            the first 500 rows: ``warn``, or ``stop`` the run as at a limit.
        keep_raw: Keep the raw answers beside the output, so that a changed parser needs no new requests.
        on_bad_input: What to do with a damaged file or a broken line: ``stop`` the job, or ``skip`` and record it in
            ``bad_input/`` of the job's state folder.
        on_new_input: What to do on an existing output if there are new input files beside the unchanged old ones:
            ``add`` them as new partitions after the old ones, or ``refuse``.
        order: In which order rows are sent. ``auto`` sends rows whose prompts begin alike one after another where that
            lets the server's prefix cache do more, among up to 16,384 rows or 32 MiB of a partition; ``input`` keeps
            the order of the input. The output always does.
        hedge: ``auto`` sends rows that are in flight at a server much slower than the others a second time, to another
            one, once nothing else is left to do: for at most 2 % of the tokens so far, or of the rows where servers
            tell no tokens. Of several columns those that a row lacks are asked for. The first answer counts. ``off``
            waits.
        on_mixed_types: What to do with a JSON field whose values have no common type (text here, a list there):
            ``stop`` before the job starts, or keep each value as ``json`` text.
        column_types: Arrow types of columns of CSV input, e.g. ``{zip: string, day: date32}``. Otherwise whole numbers
            are int64, other numbers double, ``true`` and ``false`` bool, and all else, also ``007``, is text.
        flush_interval: Seconds between writes of answers to an object store. If a worker dies, its younger answers
            are lost.
        price_input: Price in dollars of a million input tokens, to show what the job costs. Without prices a list
            price is shown, with its date, for a few models of OpenAI at its own address.
        price_output: Price in dollars of a million output tokens.
        gpus: Number of GPUs that serve the model, to tell GPU-hours at the end, in `status` and in the report.
        gpu_price_per_hour: Price in dollars of one GPU for an hour. `max_cost` does not look at it.
        grace_period: Seconds from Ctrl-C or SIGTERM to the end. The first four fifths are for the requests in flight,
            the rest for committing finished files. Batch systems that kill a job some time after SIGTERM need less.
        log_format: How progress is written where stderr is no terminal: ``text`` or ``json``, one line each time.
        metrics_port: Port of the driver on which Prometheus reads the job's metrics, at ``/metrics``; 0 for any that is
            free. Needs ``pip install 'nemo-llm-stage[metrics]'``. On Ray they are among Ray's own metrics too.

    Raises:
        ConfigError: A value has another type, or is out of bounds; the message has a line for each.
    """

    section: ClassVar[str] = "Run"

    engine: Literal["ray", "local"] = "ray"
    actors: Annotated[int, Ge(1)] | Literal["auto"] = 1
    num_cpus_per_actor: Annotated[float, Gt(0)] = 0.5
    address: str | None = None
    output_format: Literal["parquet", "jsonl"] = "parquet"
    rows_per_partition: Annotated[int, Ge(1)] | None = None
    scan_input: Literal["auto", "full", "sample"] = "auto"
    max_failed_rows: int | float | None = 0.05
    max_cost: Annotated[float, Gt(0)] | None = None
    max_requests: Annotated[int, Ge(1)] | None = None
    max_output_tokens: Annotated[int, Ge(1)] | None = None
    max_duration: Annotated[float, Gt(0)] | None = None
    requests_per_minute: Annotated[float, Gt(0)] | None = None
    tokens_per_minute: Annotated[float, Gt(0)] | None = None
    on_drift: Literal["warn", "stop"] = "warn"
    keep_raw: bool = False
    on_bad_input: Literal["stop", "skip"] = "stop"
    on_new_input: Literal["add", "refuse"] = "add"
    order: Literal["auto", "input"] = "auto"
    hedge: Literal["auto", "off"] = "auto"
    on_mixed_types: Literal["stop", "json"] = "stop"
    column_types: dict[str, str] | None = None
    flush_interval: Annotated[float, Gt(0)] = 2.0
    price_input: Annotated[float, Ge(0)] | None = None
    price_output: Annotated[float, Ge(0)] | None = None
    gpus: Annotated[float, Gt(0)] | None = None
    gpu_price_per_hour: Annotated[float, Ge(0)] | None = None
    grace_period: Annotated[float, Ge(0)] = 30.0
    log_format: Literal["text", "json"] = "text"
    metrics_port: Annotated[int, Ge(0)] | None = None

    @property
    def planned_actors(self) -> int:
        """`actors`; 1 where they hang on what there is."""
        return 1 if self.actors == "auto" else self.actors

    def __post_init__(self) -> None:
        """Check every value."""
        mistakes = [
            f"{name} is {getattr(self, name)!r}; it must be {must_be}."
            for name, hint in setting_types().items()
            if (must_be := _must_be(getattr(self, name), hint))
        ]
        limit = self.max_failed_rows
        if isinstance(limit, int | float) and not 0 <= limit <= (1 if isinstance(limit, float) else limit):
            words = "a number of rows (5), a fraction from 0.0 to 1.0, or null"
            mistakes.append(f"max_failed_rows is {limit}; it must be {words}.")
        if self.max_cost is not None and self.price_input is None and self.price_output is None:
            mistakes.append("max_cost needs prices: set price_input and price_output, in dollars a million tokens.")
        if self.gpu_price_per_hour is not None and self.gpus is None:
            mistakes.append("gpu_price_per_hour needs gpus, the number of GPUs that serve the model.")
        if mistakes:
            raise ConfigError("\n".join(mistakes))


class WorkerKeywords(TypedDict, total=False):
    """The settings that hold for a retry of failed rows too; see `JobSettings`."""

    engine: Literal["ray", "local"]
    actors: int | Literal["auto"]
    num_cpus_per_actor: float
    address: str | None
    flush_interval: float
    price_input: float | None
    price_output: float | None
    gpus: float | None
    gpu_price_per_hour: float | None
    grace_period: float
    log_format: Literal["text", "json"]
    metrics_port: int | None
    max_cost: float | None
    max_requests: int | None
    max_output_tokens: int | None
    max_duration: float | None
    requests_per_minute: float | None
    tokens_per_minute: float | None
    on_drift: Literal["warn", "stop"]


class JobKeywords(WorkerKeywords, total=False):
    """The fields of `JobSettings` as keywords of a function."""

    output_format: Literal["parquet", "jsonl"]
    rows_per_partition: int | None
    scan_input: Literal["auto", "full", "sample"]
    max_failed_rows: int | float | None
    keep_raw: bool
    on_new_input: Literal["add", "refuse"]
    on_bad_input: Literal["stop", "skip"]
    order: Literal["auto", "input"]
    hedge: Literal["auto", "off"]
    on_mixed_types: Literal["stop", "json"]
    column_types: dict[str, str] | None


@cache
def setting_types() -> dict[str, Any]:
    """Return each setting's type, with its bounds as ``Annotated``, in the order of the fields."""
    hints = get_type_hints(JobSettings, include_extras=True)
    return {field.name: hints[field.name] for field in fields(JobSettings)}


def takes(keywords: type[WorkerKeywords]) -> Callable[[_Function], _Function]:
    """
    Return a decorator for a function whose ``**settings`` are `keywords`.

    ``help()`` and notebooks list them with their defaults, and a call with any other keyword raises TypeError.
    """
    settings = [_parameter(field) for field in fields(JobSettings) if field.name in keywords.__annotations__]

    def decorate(function: _Function) -> _Function:
        declared = inspect.signature(function)
        own = [parameter for parameter in declared.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        signature = declared.replace(parameters=[*own, *settings])

        @wraps(function)
        def checked(*arguments: Any, **given: Any) -> Any:
            signature.bind(*arguments, **given)
            return function(*arguments, **given)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        return cast(_Function, checked)

    return decorate


def _parameter(field: Field[Any]) -> inspect.Parameter:
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "None"}
_NUMBERS = {int: Integral, float: Real}


def _must_be(value: Any, hint: Any) -> str | None:
    """Return what a value of this type must be if `value` is not that, else None."""
    kinds = get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)
    return None if any(_is(value, kind) for kind in kinds) else " or ".join(map(_words, kinds))


def _is(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(item, str) for pair in value.items() for item in pair)
    if get_origin(kind) is not Annotated:
        return isinstance(value, _NUMBERS.get(kind, kind)) and (kind is bool or not isinstance(value, bool))
    bare, *bounds = get_args(kind)
    return _is(value, bare) and all(
        value >= bound.ge if isinstance(bound, Ge) else value > bound.gt for bound in bounds
    )


def _words(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    if get_origin(kind) is dict:
        return "a dict of texts"
    if get_origin(kind) is not Annotated:
        return _WORDS[kind]
    bare, *bounds = get_args(kind)
    return _WORDS[bare] + "".join(
        f" of at least {bound.ge}" if isinstance(bound, Ge) else f" above {bound.gt}" for bound in bounds
    )
