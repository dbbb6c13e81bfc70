"""
Every error of the package, grouped by what the caller does next.

```
LLMStageError
├── ConfigError                    correct the settings and run again      (exit code 2)
│   ├── InputError                   … the input data: names the file, line or column
│   └── OutputConflictError          … the output folder: it belongs to another job
│       └── OutputBusyError            … another run goes on there
├── RunError                       the run broke; what is committed stays   (exit code 1)
│   ├── TooManyFailedRowsError       … more failed rows than are allowed        (exit code 3)
│   └── RunStoppedError              … a limit or an order ended it; run again  (exit code 4)
└── RequestError                   one request failed
    ├── TransientError               ask again
    │   ├── ConnectionFailedError      refused, unknown host, TLS
    │   ├── ConnectionDroppedError     reset before or within the answer
    │   │   └── RepeatedResponseError    it was the one to an earlier request
    │   ├── RequestTimeoutError        no answer in time
    │   ├── RateLimitError             429
    │   ├── ServerError                5xx, 408, 409, 425
    │   └── InvalidResponseError       200, but not an answer
    │       └── NoAnswerError            … the model only thought
    ├── RowError                     fail the row
    │   ├── SkippedError               the settings leave this row unasked: not a failure
    │   ├── PromptError                the prompt cannot be made from this row
    │   ├── BadRequestError            400, 413, 422 …: the server refuses this request
    │   ├── ContextOverflowError       the prompt is longer than the model takes
    │   ├── ContentFilterError         refused or filtered
    │   ├── TruncatedError             the answer was cut off and that is not accepted
    │   ├── ParseError                 the answer is not what the parser takes
    │   ├── QuarantinedError           the server died each time it was asked
    │   └── ClientError                a client of the user's raised something of its own
    └── FatalError                   stop the run: no request can succeed
        ├── AuthenticationError        401, 403
        └── NotFoundError              404: no such model or route
```

`kind` is the stable word written before the colon in an error column. Knows nothing of HTTP libraries: those are
mapped where they are called.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from nemo_llm_stage.text import MAX_ERROR_CHARS, printable, shorten


class LLMStageError(Exception):
    """Base of every error this package raises."""


class ConfigError(LLMStageError, ValueError):
    """The settings cannot work; nothing was asked."""


class InputError(ConfigError):
    """The input data cannot be read as asked."""


class OutputConflictError(ConfigError):
    """The output folder holds something that this job must not mix with."""


class OutputBusyError(OutputConflictError):
    """Another run of the job goes on in the output folder."""


class RunError(LLMStageError, RuntimeError):
    """The run broke. Committed partitions stay valid; running again goes on from them."""


class TooManyFailedRowsError(RunError):
    """More rows failed than `max_failed_rows` allows; the output stays, without ``_SUCCESS``."""


class RunStoppedError(RunError):
    """A limit (`max_cost` …) is reached, or somebody ordered the run to end; running again resumes the job."""


class RequestError(LLMStageError):
    """
    One request failed.

    Attributes:
        kind: The word that error columns and summaries group by.
        status: The HTTP status, where there was one.
        failures: The kind of each failed send until this error was final, oldest first; empty where nothing was sent.
        is_shared: Whether another row with the same request sent it. It counts there, not here.
    """

    kind: ClassVar[str] = "error"

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(shorten(printable(message), MAX_ERROR_CHARS))
        self.status = status
        self.failures: tuple[str, ...] = ()
        self.is_shared = False

    @property
    def attempts(self) -> int:
        """Sends that reached the server until this error was final."""
        return len(self.failures) - self.failures.count(ConnectionFailedError.kind)

    def __str__(self) -> str:
        """The message alone; the status is part of it where a server gave one."""
        return str(self.args[0]) if self.args else ""


class Outages(Protocol):
    """A server, as far as an error needs to know it."""

    num_outages: int

    @property
    def is_down(self) -> bool:
        """Whether it is in an outage now."""


class TransientError(RequestError):
    """
    Asking again may succeed.

    Attributes:
        retry_after_s: Seconds the server asked to wait; None where it did not say.
        goes_elsewhere: Whether the failure is one server's and another takes the request at once. It uses up no retry.
        server: The server that failed, where there are several; None where that is not known.
        is_overload: Whether the server is up and has too many requests.
    """

    kind = "transient"

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, status=status)
        self.retry_after_s = retry_after_s
        self.goes_elsewhere = False
        self.is_overload = False
        self.server: Outages | None = None


class ConnectionFailedError(TransientError):
    """No connection to the server: refused, unknown host, or TLS failed."""

    kind = "connection_failed"


class ConnectionDroppedError(TransientError):
    """The connection ended before the whole answer had come."""

    kind = "connection_dropped"


class RepeatedResponseError(ConnectionDroppedError):
    """The server sent an earlier response again. The next send is on a new connection and uses no retry."""

    kind = "repeated_response"


class RequestTimeoutError(TransientError):
    """No whole answer within the timeout."""

    kind = "timeout"


class RateLimitError(TransientError):
    """The server asked to slow down (429)."""

    kind = "rate_limit"


class ServerError(TransientError):
    """The server failed (5xx) or asked to come again (408, 409, 425)."""

    kind = "server_error"


class InvalidResponseError(TransientError):
    """HTTP says success, the body is not an answer: not JSON, no choices, no content, aborted."""

    kind = "invalid_response"


class NoAnswerError(InvalidResponseError):
    """The model finished thinking and wrote no answer. At temperature 0 it does so again."""

    kind = "no_answer"


class RowError(RequestError):
    """This row cannot succeed; others can."""

    kind = "row_error"


class SkippedError(RowError):
    """The settings leave this row unasked, e.g. because a column it needs is null. Counted apart from failures."""

    kind = "skipped"


class DependencyError(RowError):
    """A column that this one's prompt uses failed."""

    kind = "dependency"


class PromptError(RowError):
    """The prompt cannot be made from this row."""

    kind = "prompt"


class BadRequestError(RowError):
    """The server refuses this request (400, 413, 422 and other 4xx)."""

    kind = "bad_request"


class ContextOverflowError(BadRequestError):
    """
    The prompt and the answer asked for do not fit the model's context.

    Attributes:
        max_context_tokens: Tokens of prompt and answer together that the server takes; None where it did not say.
        prompt_tokens: Tokens of the prompt as the server counted them, or a lower bound; None likewise.
    """

    kind = "context_overflow"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        max_context_tokens: int | None = None,
        prompt_tokens: int | None = None,
    ) -> None:
        super().__init__(message, status=status)
        self.max_context_tokens = max_context_tokens
        self.prompt_tokens = prompt_tokens


class ContentFilterError(RowError):
    """The server filtered the answer or the model refused it."""

    kind = "content_filter"


class TruncatedError(RowError):
    """The answer was cut off at the token limit and the settings do not accept that."""

    kind = "truncated"


class ParseError(RowError):
    """The answer is not what the parser takes."""

    kind = "parse"


class QuarantinedError(RowError):
    """The server died again and again while it had this row; asking it once more would stop the others too."""

    kind = "quarantined"


class ClientError(RowError):
    """A user's own client raised something that is no known kind of failure."""

    kind = "client"


class FatalError(RequestError):
    """No request can succeed here until a person changes something."""

    kind = "fatal"


class AuthenticationError(FatalError):
    """The server does not accept the key (401, 403)."""

    kind = "authentication"


class NotFoundError(FatalError):
    """The server knows no such model or route (404)."""

    kind = "not_found"
