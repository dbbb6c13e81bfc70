"""
Is the server there, does it take the key, does it have the model: asked before anything is paid for.

A list of models is a hint, never a proof: aliases are not listed, and some servers have no list or guard it with
another key. Only the route that rows will take can say no. Knows the OpenAI protocol's ``/models``.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from nemo_llm_stage.client.endpoints.address import Endpoint
from nemo_llm_stage.client.errors.refusal import error_of_refusal, read_refusal
from nemo_llm_stage.client.generation import GenerationConfig
from nemo_llm_stage.client.hiding import Secrets
from nemo_llm_stage.client.http.transport import HTTPResponse
from nemo_llm_stage.client.scheme import url_that_answers
from nemo_llm_stage.client.wire.encode import CHAT_PATH
from nemo_llm_stage.client.wire.lenient_json import load_json
from nemo_llm_stage.errors import (
    ConnectionFailedError,
    InvalidResponseError,
    NotFoundError,
    RequestError,
    TransientError,
)
from nemo_llm_stage.suggest import did_you_mean

logger = logging.getLogger(__name__)

CHECK_TIMEOUT_S = 30.0
"""For each request of the check: a server that is up lists its models at once, one that loads a model does not."""

LOOK_AFTER_S = 0.3
"""After this time without an answer, see if the server speaks http: it may wait for the rest of a TLS greeting."""

ONE_TOKEN = GenerationConfig(max_tokens=1, seed=None, temperature=None, top_p=None)
GREETING = {"role": "user", "content": "Hi"}
"""The request that is as cheap as any, and takes the route that rows will take."""

MAX_NAMES = 10
"""Models named in an error."""

_NO_SUCH_MODEL_CODE = re.compile(
    # OpenAI and Groq, Together, Mistral, Azure
    rb'"(?:code|type)"\s*:\s*"(?:model_not_found|model_not_available|invalid_model|DeploymentNotFound)"'
)
_NO_SUCH_MODEL_WORDS = re.compile(
    r"model\W.{0,200}?(does not exist|not found|is unknown|unknown model)"  # OpenAI, vLLM, Ollama, Gemini
    r"|(no such|unknown|unsupported) model"
    r"|models?/\S+ is not found",  # Gemini
    re.IGNORECASE,
)
_IS_BASE_MODEL = re.compile(r"not a chat model|v1/completions", re.IGNORECASE)
"""OpenAI's 404 to a chat with a base model, which is there for ``/completions``."""


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """
    The check of one server for one model.

    Attributes:
        endpoint: The server.
        model: The model's name.
        list_models: Asks for the list of models.
        ask_for_one_token: Sends `GREETING` with `ONE_TOKEN`, as the client sends every row.
        secrets: Kept out of messages.
        has_key: Whether a key is sent.
    """

    endpoint: Endpoint
    model: str
    list_models: Callable[[], Awaitable[HTTPResponse]]
    ask_for_one_token: Callable[[], Awaitable[HTTPResponse]]
    secrets: Secrets
    has_key: bool

    async def run(self) -> None:
        """
        Return where the server would take a request for the model, or cannot tell.

        Costs nothing where the model is in the server's list, else a request for one token.

        Raises:
            ConnectionFailedError: It cannot be reached.
            AuthenticationError: It answers a request with 401.
            NotFoundError: It answers a request by saying that it does not have the model.
        """
        try:
            answer = await self._list_models()
        except TransientError as error:
            hint = await self._other_scheme() or "Is the server up, and is base_url its address?"
            raise ConnectionFailedError(f"{error} {hint}") from error
        if answer.status == HTTPStatus.BAD_REQUEST and (other := await self._other_scheme()):
            raise ConnectionFailedError(f"{self.endpoint.base_url} answers HTTP 400. {other}")
        names = _names_in(answer.body) if answer.status == HTTPStatus.OK else None
        if names is None or self.model not in names:
            await self._send_for_one_token(names)

    async def _list_models(self) -> HTTPResponse:
        """Send the first request; if it hangs at https, find out meanwhile whether the server speaks http."""
        sending = asyncio.ensure_future(self.list_models())
        try:
            await asyncio.wait({sending}, timeout=LOOK_AFTER_S)
            if self.endpoint.is_tls and not sending.done():
                looking = asyncio.ensure_future(self._other_scheme())
                await asyncio.wait({sending, looking}, return_when=asyncio.FIRST_COMPLETED)
                if not looking.done():
                    looking.cancel()
                elif looking.result():
                    raise ConnectionFailedError(f"{self.endpoint.base_url} does not answer.")
            return await sending
        finally:
            sending.cancel()

    async def _other_scheme(self) -> str | None:
        """Say that the server speaks http where https is written, or the reverse; None where it does not."""
        url = await url_that_answers(self.endpoint)
        return None if url is None else f"The server speaks {url.partition(':')[0]}: write base_url: {url}"

    async def _send_for_one_token(self, names: list[str] | None) -> None:
        try:
            answer = await self.ask_for_one_token()
        except RequestError:
            return  # a busy server is no proof
        if answer.status != HTTPStatus.UNAUTHORIZED and not _is_no_such_model(answer, self.secrets):
            return
        if answer.status != HTTPStatus.UNAUTHORIZED and names is not None:
            raise NotFoundError(self._no_such_model(names), status=answer.status)
        error = error_of_refusal(
            answer.status,
            answer.body,
            url=self.endpoint.url(CHAT_PATH),
            model=self.model,
            secrets=self.secrets,
            has_key=self.has_key,
        )
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.NOT_FOUND}:
            raise error
        raise NotFoundError(f"{error} The model asked for is {self.model!r}.", status=answer.status)

    def _no_such_model(self, names: list[str]) -> str:
        base_url, model = self.endpoint.base_url, self.model
        if not names:
            return f"{base_url} has no model {model!r}; it lists none."
        nearest = sorted(names, key=lambda name: -difflib.SequenceMatcher(None, model, name).ratio())
        listed = ", ".join(map(repr, nearest[:MAX_NAMES])) + (" …" if len(names) > MAX_NAMES else "")
        hint = did_you_mean(model, names)
        return f"{base_url} has no model {model!r}; it has {listed}." + (f" D{hint[1:]}" if hint else "")


async def check_all(checks: Sequence[ServerCheck]) -> None:
    """
    Check several servers at once. Some being down is only logged.

    Raises:
        ConnectionFailedError: None can be reached.
        AuthenticationError: One does not take the key.
        NotFoundError: One does not have the model.
    """
    outcomes = await asyncio.gather(*(check.run() for check in checks), return_exceptions=True)
    errors = [(check, outcome) for check, outcome in zip(checks, outcomes, strict=True) if outcome is not None]
    unreachable = [error for _, error in errors if isinstance(error, ConnectionFailedError)]
    for check, error in errors:
        check.secrets.clean(error)
        if error not in unreachable or len(unreachable) == len(checks):
            raise error
    for error in unreachable:
        logger.warning("%s The other servers are asked.", error)


def _is_no_such_model(answer: HTTPResponse, secrets: Secrets) -> bool:
    """Whether an answer says that there is no such model: by its code, or by the words of a 404."""
    if answer.status not in {HTTPStatus.NOT_FOUND, HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}:
        return False
    refusal = read_refusal(answer.body, secrets)
    if _IS_BASE_MODEL.search(refusal.text):
        return False
    if _NO_SUCH_MODEL_CODE.search(answer.body):
        return True
    return answer.status == HTTPStatus.NOT_FOUND and _NO_SUCH_MODEL_WORDS.search(refusal.text) is not None


def _names_in(body: bytes) -> list[str] | None:
    """The names a ``/models`` answer lists; None where it is no such answer."""
    try:
        return [str(entry["id"]) for entry in load_json(body)["data"]]
    except (ValueError, TypeError, KeyError, InvalidResponseError):
        return None
