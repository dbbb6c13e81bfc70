"""The recipes of PROVIDERS.md, each against a server that answers as the provider does."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import yaml

from nemo_llm_stage.config.load import make_config

KEY = "provider-key-0123456789abcdef"
TEXT = (Path(__file__).parents[2] / "pipelines" / "PROVIDERS.md").read_text()
RECIPES = dict(re.findall(r"^## (.+?)\n.*?```yaml\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL))

Reply = tuple[int, Any]
Provider = Callable[[str, dict[str, str], dict[str, Any] | None], Reply]
"""Path with its query, headers by lower-case name, and body (None for GET) → status and JSON."""


def answer(body: dict[str, Any], **more: Any) -> Reply:
    text = "yes" if "science" in body["messages"][-1]["content"] else f"about {body['messages'][-1]['content']}"
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None}
    usage = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    return 200, {
        "id": text,
        "object": "chat.completion",
        "choices": [choice],
        "model": body["model"],
        "usage": usage,
        **more,
    }


def openai_error(status: int, message: str, **more: Any) -> Reply:
    return status, {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **more}}


def has_key(headers: dict[str, str]) -> bool:
    return headers.get("authorization") == f"Bearer {KEY}"


def models(*names: str) -> Reply:
    return 200, {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}


def azure(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Key in a header of its own, version in the query, deployment in the path; no list there."""
    if headers.get("api-key") != KEY:
        return 401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}}
    if path != "/openai/deployments/my-deployment/chat/completions?api-version=2024-10-21" or body is None:
        return 404, {"error": {"code": "404", "message": "Resource not found"}}
    reply = answer(body)[1]
    filters = {"hate": {"filtered": False, "severity": "safe"}}
    return 200, {**reply, "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": filters}]}


def openai_reasoning(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Refuses max_tokens and temperature by name."""
    if not has_key(headers):
        return openai_error(401, "Incorrect API key provided", code="invalid_api_key")
    if body is None:
        return models("gpt-4o", "o4-mini")
    if "max_tokens" in body:
        words = (
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        )
        return openai_error(400, words, param="max_tokens", code="unsupported_parameter")
    for name in ("temperature", "top_p"):
        if name in body:
            words = f"Unsupported value: '{name}' does not support {body[name]} with this model."
            return openai_error(400, words, param=name, code="unsupported_value")
    assert body["max_completion_tokens"] == 8000
    assert body["reasoning_effort"] == "low"
    return answer(body)


def gemini(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Lists other names than it takes, and puts errors into a list."""
    if not has_key(headers):
        return 400, [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}]
    if body is None:
        return models("models/gemini-2.5-flash")
    if "seed" in body:
        words = 'Invalid JSON payload received. Unknown name "seed": Cannot find field.'
        return 400, [{"error": {"code": 400, "message": words, "status": "INVALID_ARGUMENT"}}]
    assert path == "/v1beta/openai/chat/completions"
    return answer(body)


def mistral(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Refuses what it does not know, and top_p in greedy sampling."""
    if not has_key(headers):
        return 401, {"detail": "Unauthorized"}
    if body is None:
        return models("mistral-small-latest")
    for name in ("seed", "stream_options"):
        if name in body:
            detail = [{"type": "extra_forbidden", "loc": ["body", name], "msg": "Extra inputs are not permitted"}]
            return 422, {
                "object": "error",
                "message": {"detail": detail},
                "type": "invalid_request_error",
                "code": None,
            }
    if body["temperature"] == 0 and body.get("top_p", 1) != 1:
        return 400, {"object": "error", "message": "top_p must be 1 when using greedy sampling.", "code": "3050"}
    assert body["random_seed"] == 0
    return answer(body)


def openrouter(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Takes the headers that name the caller."""
    if body is None:
        return models("meta-llama/llama-3.3-70b-instruct")
    if not has_key(headers):
        return 401, {"error": {"message": "No auth credentials found", "code": 401}}
    assert (headers["http-referer"], headers["x-title"]) == ("https://example.org", "my job")
    assert body["provider"] == {"require_parameters": True}
    return answer(body, provider="DeepInfra")


def groq(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """One choice, no logprobs."""
    if not has_key(headers):
        return openai_error(401, "Invalid API Key", code="invalid_api_key")
    if body is None:
        return models("llama-3.1-8b-instant")
    if body.get("n", 1) != 1 or "logprobs" in body:
        return openai_error(400, "property 'logprobs' is unsupported")
    assert path == "/openai/v1/chat/completions"
    return answer(body, x_groq={"id": "req_1"})


def together(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Its list is a bare array."""
    if not has_key(headers):
        return openai_error(401, "Invalid API key provided", code="invalid_api_key")
    if body is None:
        return 200, [{"id": "meta-llama/Llama-3.3-70B-Instruct-Turbo", "type": "chat"}]
    assert body["top_k"] == 40
    reply = answer(body)[1]
    reply["choices"][0]["finish_reason"] = "eos"
    return 200, reply


def ollama(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Lists tags, takes names without."""
    return models("llama3.2:latest") if body is None else answer(body, system_fingerprint="fp_ollama")


def lm_studio(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Only JSON Schemas."""
    if body is None:
        return models("qwen3-8b")
    if body["response_format"]["type"] != "json_schema":
        return 400, {"error": "'response_format.type' must be 'json_schema' or 'text'"}
    return quoted(answer(body, stats={}))


def llama_cpp(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Takes any name, and times its work."""
    if body is None:
        return 200, {"models": [{"name": "m.gguf"}], "object": "list", "data": [{"id": "m.gguf", "object": "model"}]}
    if "response_format" not in body:
        return answer(body)
    return quoted(answer(body, timings={"cache_n": 3, "prompt_n": 2}))


def vllm(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Guards every route with the key."""
    if not has_key(headers):
        return 401, {"error": "Unauthorized"}
    if body is None:
        return models("Qwen/Qwen3-8B")
    assert body["structured_outputs"] == {"choice": ["yes", "no"]}
    return answer(body, prompt_logprobs=None, kv_transfer_params=None)


def sglang(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """As OpenAI's, with a stop of its own."""
    if body is None:
        return models("Qwen/Qwen3-8B")
    assert body["response_format"]["type"] == "json_schema"
    reply = quoted(answer(body))[1]
    reply["choices"][0]["matched_stop"] = 151645
    return 200, reply


def nim(path: str, headers: dict[str, str], body: dict[str, Any] | None) -> Reply:
    """Refuses the list to some keys."""
    if body is None:
        return 403, {"status": 403, "title": "Forbidden", "detail": "Authorization failed"}
    if not has_key(headers):
        return 401, {"status": 401, "title": "Unauthorized", "detail": "Authentication failed"}
    assert headers["nvcf-poll-seconds"] == "300"
    return answer(body)


def quoted(reply: Reply) -> Reply:
    """The answer as the JSON that was asked for."""
    message = reply[1]["choices"][0]["message"]
    message["content"] = json.dumps(message["content"])
    return reply


PROVIDERS: dict[str, Provider] = {
    "Azure OpenAI": azure,
    "OpenAI's reasoning models": openai_reasoning,
    "Gemini": gemini,
    "Mistral": mistral,
    "OpenRouter": openrouter,
    "Groq": groq,
    "Together": together,
    "Ollama": ollama,
    "LM Studio": lm_studio,
    "llama.cpp": llama_cpp,
    "vLLM": vllm,
    "SGLang": sglang,
    "NIM": nim,
}


@contextmanager
def serving(provider: Provider) -> Iterator[str]:
    """Serve as `provider` does; gives the address without its path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._reply(None)

        def do_POST(self) -> None:
            self._reply(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _reply(self, body: dict[str, Any] | None) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            try:
                status, value = provider(self.path, headers, body)
            except (AssertionError, KeyError) as error:
                status, value = 400, {"error": {"message": f"wrong request: {error!r}"}}
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_recipe_has_its_server() -> None:
    """And every server its recipe."""
    assert {*RECIPES} == {*PROVIDERS}


SDKS_OWN = ("Azure OpenAI", "Groq", "Ollama", "LM Studio", "llama.cpp", "vLLM", "SGLang", "NIM")
"""Recipes without parameters that the openai SDK does not know, or sends as null."""


@pytest.mark.parametrize(
    ("name", "client_type"), [(name, "http") for name in PROVIDERS] + [(name, "openai") for name in SDKS_OWN]
)
def test_a_recipe_works(name: str, client_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With only its address changed: the check passes, and rows are answered; through the openai SDK too."""
    settings = yaml.safe_load(RECIPES[name])
    if env := settings["client"].get("api_key_env"):
        monkeypatch.setenv(env, KEY)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with serving(PROVIDERS[name]) as address:
        settings["client"] |= {"base_url": address + urlsplit(settings["client"]["base_url"]).path, "type": client_type}
        with make_config(settings).open_stage() as stage:
            asyncio.run(_check(stage.client, settings["model"]))
            rows = stage.process(pa.table({"text": ["one", "two"]})).to_pylist()
            stage.close()
    column = settings["output_column"]
    assert [row[f"{column}_error"] for row in rows] == [None, None]
    assert [row[column] for row in rows] == (
        ["yes"] * 2 if "answer" in settings else ["about Summarize: one", "about Summarize: two"]
    )


async def _check(client: Any, model: str) -> None:
    try:
        await client.check(model)
    finally:
        await client.aclose()
