"""A response without an answer becomes an error."""

from __future__ import annotations

from http import HTTPStatus

from nemo_llm_stage.client.errors.refusal import error_of_refusal
from nemo_llm_stage.client.errors.retry_after import parse_retry_after_s
from nemo_llm_stage.client.errors.unexpected_status import error_of_unexpected_status
from nemo_llm_stage.client.hiding import Secrets
from nemo_llm_stage.client.http.transport import HTTPResponse
from nemo_llm_stage.errors import RequestError


def error_of_response(
    response: HTTPResponse, url: str, model: str, secrets: Secrets, *, has_key: bool | None = None
) -> RequestError:
    """
    Return the error for a response whose status is not 200.

    Args:
        response: As it came.
        url: That the request was sent to.
        model: That was asked.
        secrets: Hidden in the server's words.
        has_key: Whether the request had a key; None where that is not known.
    """
    url = url.partition("?")[0]
    if response.status < HTTPStatus.BAD_REQUEST:
        return error_of_unexpected_status(response, url)
    retry_after_s = parse_retry_after_s(response.header("retry-after"), response.header("retry-after-ms"))
    return error_of_refusal(
        response.status,
        response.body,
        url=url,
        model=model,
        retry_after_s=retry_after_s,
        secrets=secrets,
        has_key=has_key,
    )
