"""
Is the server there, does it take the key, does it have the model: asked before anything is paid for.

Knows the OpenAI protocol's ``/models``; says in words what to do when the answer is no.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import orjson

from nemo_llm_stage.client.endpoints import Endpoint
from nemo_llm_stage.client.errors.refusal import error_of_refusal
from nemo_llm_stage.client.http.transport import Transport
from nemo_llm_stage.client.llm_client import GenerationConfig
from nemo_llm_stage.client.wire import encode_request
from nemo_llm_stage.errors import ConnectionFailedError, NotFoundError, TransientError
from nemo_llm_stage.suggest import did_you_mean

CHECK_TIMEOUT_S = 30.0
"""For each request of the check: a server that is up lists its models at once, one that loads a model does not."""

MAX_NAMES = 10
"""Models named in an error."""


async def check_server(transport: Transport, endpoint: Endpoint, model: str, secrets: Sequence[str]) -> None:
    """
    Return where `endpoint` is there, takes the key and has `model`, or cannot tell.

    Raises:
        ConnectionFailedError: It cannot be reached.
        AuthenticationError: It does not take the key.
        NotFoundError: It does not have the model.
    """
    url = endpoint.url("models")
    try:
        answer = await transport.send(url, None, timeout_s=CHECK_TIMEOUT_S)
    except TransientError as error:
        raise ConnectionFailedError(f"{error} Is the server up, and is base_url its address?") from error
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise error_of_refusal(answer.status, answer.body, url=url, secrets=secrets)
    names = _names_in(answer.body) if answer.status == HTTPStatus.OK else None
    if names is not None and model not in names:
        await _check_unlisted(transport, endpoint, model, names, secrets)


async def _check_unlisted(
    transport: Transport, endpoint: Endpoint, model: str, names: list[str], secrets: Sequence[str]
) -> None:
    """A name that is not listed may be an alias: ask for one token and believe the answer."""
    config = GenerationConfig(max_tokens=1, seed=None, temperature=None, top_p=None)
    request = encode_request([{"role": "user", "content": "Hi"}], model, config)
    url = endpoint.url(request.path)
    try:
        answer = await transport.send(url, request.body, timeout_s=CHECK_TIMEOUT_S)
    except TransientError:
        return  # a busy server is no proof
    if answer.status == HTTPStatus.OK:
        return
    error = error_of_refusal(answer.status, answer.body, url=url, model=model, secrets=secrets)
    is_about_model = "model" in str(error).lower()
    if answer.status == HTTPStatus.NOT_FOUND or (answer.status == HTTPStatus.BAD_REQUEST and is_about_model):
        raise NotFoundError(_no_such_model(endpoint, model, names), status=answer.status)
    if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise error


def _no_such_model(endpoint: Endpoint, model: str, names: list[str]) -> str:
    if not names:
        return f"{endpoint.base_url} has no model {model!r}; it lists none."
    nearest = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, model, name).ratio())
    listed = ", ".join(map(repr, nearest[:MAX_NAMES])) + (" …" if len(names) > MAX_NAMES else "")
    hint = did_you_mean(model, names)
    return f"{endpoint.base_url} has no model {model!r}; it has {listed}." + (f" D{hint[1:]}" if hint else "")


def _names_in(body: bytes) -> list[str] | None:
    """The names a ``/models`` answer lists; None where it is no such answer."""
    try:
        answer: Any = orjson.loads(body)
        return [str(entry["id"]) for entry in answer["data"]]
    except (ValueError, TypeError, KeyError):
        return None
