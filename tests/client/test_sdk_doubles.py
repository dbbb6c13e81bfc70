"""The SDK's clients under tests that put doubles in the place of the SDK, as those written for NeMo Curator do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock, patch

import pytest

from nemo_llm_stage.client.llm_client import AsyncLLMClient, LLMClient
from nemo_llm_stage.client.openai_client import AsyncOpenAIClient, OpenAIClient
from nemo_llm_stage.core import Completion, Usage
from nemo_llm_stage.errors import BadRequestError, InvalidResponseError

from .conftest import MESSAGES

MODULE = "nemo_llm_stage.client.openai_client"


def choice_with(content: Any, **fields: Any) -> Mock:
    """A choice that has an attribute of every name."""
    return MagicMock(message=MagicMock(content=content), **fields)


def query(client: Any, **request: Any) -> list[str]:
    """`query_model` of either client."""
    if isinstance(client, LLMClient):
        return client.query_model(messages=MESSAGES, model="m", **request)
    return asyncio.run(client.query_model(messages=MESSAGES, model="m", **request))


@pytest.fixture(params=[(OpenAIClient, "OpenAI", Mock), (AsyncOpenAIClient, "AsyncOpenAI", AsyncMock)], ids=str)
def sdk(request: pytest.FixtureRequest) -> Iterator[tuple[Callable[..., Any], Mock, Mock]]:
    """A kind of client, the double of the SDK's class, and the double of its instance."""
    make, name, double = request.param
    with patch(f"{MODULE}.{name}") as sdk_class:
        sdk_class.return_value = double()
        yield make, sdk_class, sdk_class.return_value


def test_the_sdks_classes_are_patched_where_they_are_used(sdk: tuple[Callable[..., Any], Mock, Mock]) -> None:
    """As names of the module; they get what the client was given."""
    make, sdk_class, instance = sdk
    client = make(api_key="k", base_url="http://x/v1")
    client.setup()
    sdk_class.assert_called_once_with(api_key="k", base_url="http://x/v1")
    assert client.client is instance


def test_a_response_with_attributes_alone_is_read(sdk: tuple[Callable[..., Any], Mock, Mock]) -> None:
    """A double has every attribute and says nothing sensible with most of them."""
    make, _, instance = sdk
    instance.chat.completions.create.return_value = MagicMock(choices=[choice_with("one"), choice_with("two")])
    assert query(make(), generation_config={"n": 2, "max_tokens": 5}) == ["one", "two"]
    sent = instance.chat.completions.create.call_args.kwargs
    assert (sent["messages"], sent["n"], sent["max_tokens"], sent["timeout"]) == (MESSAGES, 2, 5, 120)


def test_there_is_no_client_before_setup(sdk: tuple[Callable[..., Any], Mock, Mock]) -> None:
    """`setup` is called by the first request, where nobody has."""
    make, _, instance = sdk
    instance.chat.completions.create.return_value = MagicMock(choices=[choice_with("x")])
    client = make()
    assert not hasattr(client, "client")
    with patch.object(client, "setup", wraps=client.setup) as setup:
        query(client)
        setup.assert_called_once_with()
    assert client.client is instance


def test_a_setup_that_was_called_is_not_called_again(sdk: tuple[Callable[..., Any], Mock, Mock]) -> None:
    """The client that it made stays."""
    make, _, instance = sdk
    instance.chat.completions.create.return_value = MagicMock(choices=[choice_with("x")])
    client = make()
    client.setup()
    with patch.object(client, "setup") as setup:
        query(client)
        setup.assert_not_called()


@pytest.mark.parametrize("module", ["openai_client", "llm_client"])
def test_the_logger_is_patched_where_it_is_used(module: str) -> None:
    """A test that silences it finds it."""
    with patch(f"nemo_llm_stage.client.{module}.logger") as logger:
        assert isinstance(logger, MagicMock)


def complete(response: Any) -> Completion:
    async def scenario() -> Completion:
        client = AsyncOpenAIClient(api_key="k", max_retries=0)
        client.client = AsyncMock(base_url="http://x/v1/")
        client.client.chat.completions.create.return_value = response
        return await client.complete(messages=MESSAGES, model="m")

    return asyncio.run(scenario())


def test_odd_side_fields_are_none() -> None:
    """By the same rules as the other client's."""
    message = SimpleNamespace(content="x", reasoning_content=[{"text": "so"}], tool_calls=None)
    choice = SimpleNamespace(message=message, finish_reason={"type": "stop"}, logprobs=5)
    usage = {"prompt_tokens": "3", "completion_tokens": 2, "prompt_tokens_details": [1]}
    completion = complete(SimpleNamespace(choices=[choice], model={}, usage=usage))
    assert (completion.texts, completion.reasoning, completion.finish_reasons) == (("x",), ("so",), (None,))
    assert (completion.usage, completion.model, completion.logprobs) == (Usage(None, 2, None), None, ())


@pytest.mark.parametrize(
    ("response", "error_type"),
    [
        ("<html>", InvalidResponseError),
        (None, InvalidResponseError),
        (SimpleNamespace(choices=None), InvalidResponseError),
        (SimpleNamespace(choices=[]), InvalidResponseError),
        (SimpleNamespace(choices=[SimpleNamespace(message=None, finish_reason="stop")]), InvalidResponseError),
        (SimpleNamespace(choices=None, error={"message": "no", "code": 400}), BadRequestError),
    ],
    ids=repr,
)
def test_a_response_that_is_no_answer_is_a_typed_error(response: Any, error_type: type[Exception]) -> None:
    """HTTP 200 is not success."""
    with pytest.raises(error_type):
        complete(response)


def test_the_module_loads_without_the_sdk() -> None:
    """Its names are there before the SDK is."""
    code = f"import sys, {MODULE} as m; print(m.OpenAI, m.AsyncOpenAI, 'openai' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split()[-1] == "False"


def test_names_that_curators_own_tests_read_are_there() -> None:
    """Its clients hold their limit as a semaphore, made by the first request and kept for the event loop."""

    class Client(AsyncLLMClient):
        def setup(self) -> None:
            """Nothing to open."""

        async def _query_model_impl(self, **_: Any) -> list[str]:
            return ["x"]

    def names(client: AsyncLLMClient) -> list[Any]:
        return [getattr(client, name) for name in ("_semaphore", "_semaphore_loop")]

    async def scenario(client: AsyncLLMClient) -> None:
        assert names(client) == [None, None]
        for _ in range(2):
            assert await client.query_model(messages=MESSAGES, model="m") == ["x"]
            assert names(client) == [client.limit, asyncio.get_running_loop()]
            assert getattr(names(client)[0], "_value") == 3  # noqa: B009 - the name is private

    client = Client(max_concurrent_requests=3)
    asyncio.run(scenario(client))
    assert names(client) == [None, None]


def test_a_subclass_may_have_a_semaphore_of_its_own() -> None:
    """The name is nobody's."""

    class Client(AsyncOpenAIClient):
        def __init__(self) -> None:
            super().__init__()
            self._semaphore = own

    own = object()
    assert getattr(Client(), "_semaphore") is own  # noqa: B009 - likewise
