"""
A status that is neither the answer (200) nor a refusal (400 and above), as one of our errors.

Pure.
"""

from __future__ import annotations

from http import HTTPStatus

from nemo_llm_stage.client.http.transport import HTTPResponse
from nemo_llm_stage.errors import FatalError, InvalidResponseError, RequestError

_REDIRECTS = frozenset({300, 301, 302, 303, 307, 308})
"""Source: RFC 9110 §15.4; 304 answers a condition that we never send, 305 and 306 are out of use."""


def error_of_unexpected_status(response: HTTPResponse, url: str) -> RequestError:
    """
    Return the error for a response with a status below 400 other than 200.

    Args:
        response: The response.
        url: Where it came from, without a query.

    Returns:
        FatalError: A redirect: the address is wrong. The query of its target may hold a token and is left out.
        InvalidResponseError: Any other, e.g. 204: there is no answer; the next time there may be one.
    """
    status = response.status
    if status not in _REDIRECTS:
        return InvalidResponseError(f"HTTP {status}: {_phrase(status)} from {url}, where an answer was due.")
    target = (response.header("location") or "").partition("?")[0]
    where = f" to {target}" if target else ""
    return FatalError(
        f"HTTP {status}: {url} redirects{where}; redirects are not followed. Correct base_url.", status=status
    )


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase.lower()
    except ValueError:
        return "an unknown status"
