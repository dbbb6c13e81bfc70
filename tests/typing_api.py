"""The public API as a type checker sees it: checked by mypy, never run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, assert_type

import pandas as pd
import pyarrow as pa

from nemo_llm_stage import (
    AsyncHTTPClient,
    AsyncLLMClient,
    Completion,
    ConversationFormatter,
    GenerationConfig,
    JobResult,
    LLMStage,
    MultiColumnStage,
    run_job,
)


class MyClient(AsyncLLMClient):
    def setup(self) -> None: ...

    async def _query_model_impl(
        self,
        *,
        messages: Iterable[dict[str, Any]],
        model: str,
        conversation_formatter: ConversationFormatter | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
    ) -> list[str]:
        return [model]


stage = LLMStage(client=MyClient(), model="m", prompt="{{ text }}", output_column="x")
assert_type(stage.process(pd.DataFrame()), pd.DataFrame)
assert_type(stage.process(pa.table({})), pa.Table)
assert_type(run_job(stage=stage, input="in", output="out"), JobResult)
assert_type(run_job(stage=[stage, stage], input="in", output="out"), JobResult)
assert_type(MultiColumnStage([stage], keep_if="x").process(pa.table({})), pa.Table)


async def use() -> None:
    client = AsyncHTTPClient("http://localhost:8000/v1")
    assert_type(await client.query_model(messages=[], model="m", generation_config={"n": 2}), list[str])
    assert_type(await client.complete(messages=[], model="m"), Completion)
