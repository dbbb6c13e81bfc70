"""
The check before anything is paid for, asked through the openai SDK: by the routes and with the key that rows will have.

What an answer proves is decided by `server_check`, as for the other client.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.hiding import Secrets
from nemo_llm_stage.client.http.transport import HTTPResponse
from nemo_llm_stage.client.server_check import ServerCheck

if TYPE_CHECKING:
    from openai import AsyncOpenAI


def is_sdk_client(client: Any) -> bool:
    """Whether `client` is the SDK's own, or of a subclass of it; a test's double is not asked whether it is there."""
    return isinstance(client, importlib.import_module("openai").AsyncOpenAI)


def check_of_sdk(
    client: AsyncOpenAI, kwargs: dict[str, Any], secrets: Secrets, as_error: Callable[[Exception], Exception]
) -> ServerCheck:
    """
    Return the check of a client's server.

    Args:
        client: Of the running loop.
        kwargs: For ``create``: the request for one token.
        secrets: Kept out of messages.
        as_error: Makes one of our errors of one of the SDK's.
    """
    shared = {name: kwargs[name] for name in ("timeout", "extra_headers") if name in kwargs}
    chat = client.chat.completions

    async def response_of(answer: Awaitable[Any]) -> HTTPResponse:
        try:
            response = (await answer).http_response
        except importlib.import_module("openai").APIStatusError as error:
            response = error.response
        except Exception as error:
            raise as_error(error) from error
        headers = {name.lower().encode(): value.encode() for name, value in response.headers.items()}
        return HTTPResponse(response.status_code, headers, response.content, False)

    return ServerCheck(
        Endpoint(str(client.base_url).rstrip("/"), client.base_url.host),
        kwargs["model"],
        list_models=lambda: response_of(client.models.with_raw_response.list(**shared)),
        ask_for_one_token=lambda: response_of(chat.with_raw_response.create(**kwargs)),
        secrets=secrets,
        has_key=bool(client.api_key),
    )
