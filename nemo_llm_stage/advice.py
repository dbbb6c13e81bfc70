"""
What causes each kind of error, and what to do about it: one entry for every `RequestError.kind`.

Shown by `nemo-llm-stage explain KIND` and in the reference. Knows kinds only; a test checks that none is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemo_llm_stage.errors import RequestError


@dataclass(frozen=True, slots=True)
class Advice:
    """
    What to know about one kind of error.

    Attributes:
        cause: Why it happens.
        next_step: What a person does about it; settings and commands stand in backticks.
    """

    cause: str
    next_step: str


_RETRY = "`nemo-llm-stage retry-failed OUT` sends these rows again."

ADVICE = {
    "error": Advice(
        "A client failed in a way that has no kind of its own.",
        f"Read the message after the colon. {_RETRY}",
    ),
    "transient": Advice(
        "A client reported a temporary failure that has no kind of its own, and the retries are used up.",
        f"Wait until the server is well. {_RETRY}",
    ),
    "connection_failed": Advice(
        "No connection to the server: nothing listens there, the host is unknown, or TLS failed.",
        "Check that the server runs and that `base_url` is its address as seen from the machine that sends the "
        f"requests; `nemo-llm-stage doctor JOB.yaml` tries it. {_RETRY}",
    ),
    "connection_dropped": Advice(
        "The server or a proxy closed the connection before the whole answer had arrived.",
        "Look for crashes and restarts in the server's log and for a short idle timeout in the proxy; "
        f"`generation_config: {{stream: true}}` keeps a connection busy. {_RETRY}",
    ),
    "repeated_response": Advice(
        "The server or a proxy sent an earlier response a second time, where the next one was due.",
        "Look for a proxy that repeats responses. Connections to such a server are used once each, so that no row gets "
        f"the answer of another. {_RETRY}",
    ),
    "timeout": Advice(
        "The whole answer did not arrive within `timeout` seconds, in any attempt.",
        "Leave `max_concurrent_requests` and `timeout` out, so that both follow the server; with numbers, lower the "
        "first if the server is overloaded, or raise the second. Lower `max_tokens` if answers are long. "
        f"{_RETRY}",
    ),
    "rate_limit": Advice(
        "The server answered with status 429: more requests or tokens a minute than the account or the server allows.",
        "Leave `max_concurrent_requests` out, so that it follows the refusals, or ask for a higher limit. A job keeps "
        f"retrying for `give_up_after` seconds and obeys `Retry-After`. {_RETRY}",
    ),
    "server_error": Advice(
        "The server failed (status 5xx) or was not ready (408, 409, 425), in every attempt.",
        f"Read the server's log; often it is out of memory or still loads the model. {_RETRY}",
    ),
    "invalid_response": Advice(
        "The status was 200, but the body was not an answer: not JSON, no choices, or the server aborted the request.",
        "Check that `base_url` is an OpenAI-compatible API and ends where `/chat/completions` begins, and that no "
        f"proxy answers in its place. {_RETRY}",
    ),
    "no_answer": Advice(
        "The model wrote only its thinking and then stopped.",
        "Raise `max_tokens`, limit or switch off thinking (`extra_kwargs`), or set a temperature above 0, so that a "
        f"retry can differ. {_RETRY}",
    ),
    "row_error": Advice(
        "A client reported that this row cannot succeed, without a kind of its own.",
        "Read the message after the colon, and correct the row or the prompt.",
    ),
    "skipped": Advice(
        "The settings skip this row: `skip_when` is true, or the prompt uses a null. It is not a failure.",
        "Nothing. To send such rows, change `skip_when` or set `on_null: empty`.",
    ),
    "dependency": Advice(
        "A column that this column's prompt uses failed in this row.",
        f"Look at the error of the column that is named. {_RETRY}",
    ),
    "prompt": Advice(
        "The prompt cannot be made from this row: the template failed on its values, or an image cannot be read.",
        "Correct the row, make the template robust (`{{ text | default('') }}`), or skip such rows with `skip_when`.",
    ),
    "bad_request": Advice(
        "The server refuses this request (status 400, 413, 422 or another 4xx).",
        "Read the server's words after the colon. If all rows fail, a parameter of `generation_config` or the prompt's "
        f"form does not suit this model; `nemo-llm-stage preview JOB.yaml` shows it on a few rows. {_RETRY}",
    ),
    "context_overflow": Advice(
        "The prompt and `max_tokens` together are longer than the model's context.",
        "Shorten the text in the template (`{{ text | truncate_tokens(2000) }}`), lower `max_tokens`, set "
        "`on_overflow`, or serve the model with a longer context.",
    ),
    "content_filter": Advice(
        "The server filtered the answer, or the model refused to give one.",
        "Leave such rows out, rephrase the prompt, or choose another model. The same request gives the same result.",
    ),
    "truncated": Advice(
        "The answer was cut off at `max_tokens`, and `on_truncated: error` does not accept that.",
        f"Raise `max_tokens`, or set `on_truncated` to `retry_longer`, `continue` or `accept`. {_RETRY}",
    ),
    "parse": Advice(
        "The answer does not fit `answer`: no label, no match, invalid JSON, or JSON that violates the schema.",
        "Look at the answer in `X_meta.raw`. Say in the prompt what to write, use a guided answer, or raise "
        f"`max_reasks`. {_RETRY}",
    ),
    "quarantined": Advice(
        "The server died each time it had this row, so it is not sent any more.",
        "Look for what is special about the row (very long, odd characters, an image), and tell the server's authors.",
    ),
    "client": Advice(
        "A client of your own, or the openai SDK, raised an exception that is no known kind of failure.",
        "Correct the client, or make it raise one of the errors in `nemo_llm_stage.errors`.",
    ),
    "fatal": Advice(
        "A client reported that no request can succeed.",
        "Correct what the message names, and run the same command again.",
    ),
    "authentication": Advice(
        "The server does not accept the key (status 401 or 403), or no key was sent to a server that requires one.",
        "Set `api_key_env` to the name of the environment variable that holds the key, or `api_key_file`; "
        "`nemo-llm-stage doctor JOB.yaml` tells whether a key is sent and accepted.",
    ),
    "not_found": Advice(
        "The server has no such model, or no such route (status 404).",
        "Check `model` and `base_url`, which ends where `/chat/completions` begins, often with `/v1`; "
        "`nemo-llm-stage doctor JOB.yaml` lists the server's models.",
    ),
}
"""Kind → what to know about it."""


def error_classes(base: type[RequestError] = RequestError) -> Iterator[type[RequestError]]:
    """Yield `base` and every class of the package below it, parents first."""
    yield base
    for child in base.__subclasses__():
        if child.__module__.startswith("nemo_llm_stage."):
            yield from error_classes(child)
