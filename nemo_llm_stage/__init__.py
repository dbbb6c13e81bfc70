"""
Add LLM-generated columns to a dataset of any size.

```python
from nemo_llm_stage import AsyncHTTPClient, LLMStage

stage = LLMStage(
    client=AsyncHTTPClient("http://localhost:8000/v1"),
    model="my-model",
    prompt="Summarize in one sentence: {{ text }}",
    output_column="summary",
)
frame = stage.process(frame)  # the same rows, and summary, summary_error, summary_meta
```
"""

from typing import TYPE_CHECKING, Any

from nemo_llm_stage.client.formatters import HFChatTemplateFormatter, PlainFormatter
from nemo_llm_stage.client.http_client import AsyncHTTPClient
from nemo_llm_stage.client.llm_client import AsyncLLMClient, ConversationFormatter, GenerationConfig, LLMClient
from nemo_llm_stage.client.openai_client import AsyncOpenAIClient, OpenAIClient
from nemo_llm_stage.core import Completion, RowResult, Usage
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.errors import (
    ConfigError,
    FatalError,
    InputError,
    LLMStageError,
    OutputConflictError,
    ParseError,
    RequestError,
    RowError,
    RunError,
    TransientError,
)
from nemo_llm_stage.job.result import JobResult
from nemo_llm_stage.output import ChoiceOutput, JsonOutput, Output, RegexOutput
from nemo_llm_stage.prompt import Prompt
from nemo_llm_stage.stage.llm_stage import LLMStage
from nemo_llm_stage.stage.multi import MultiColumnStage
from nemo_llm_stage.stage.stage import Stage

if TYPE_CHECKING:
    from nemo_llm_stage.run import retry_failed, run_job

__version__ = "0.1.0"

__all__ = [
    "AsyncHTTPClient",
    "AsyncLLMClient",
    "AsyncOpenAIClient",
    "ChoiceOutput",
    "Completion",
    "ConfigError",
    "ConversationFormatter",
    "Counters",
    "FatalError",
    "GenerationConfig",
    "HFChatTemplateFormatter",
    "InputError",
    "JobResult",
    "JsonOutput",
    "LLMClient",
    "LLMStage",
    "LLMStageError",
    "MultiColumnStage",
    "OpenAIClient",
    "Output",
    "OutputConflictError",
    "ParseError",
    "PlainFormatter",
    "Prompt",
    "RegexOutput",
    "RequestError",
    "RowError",
    "RowResult",
    "RunError",
    "Stage",
    "TransientError",
    "Usage",
    "retry_failed",
    "run_job",
]


def __getattr__(name: str) -> Any:
    """Import what runs jobs when it is asked for: files and their formats are a third of the import's time."""
    if name in {"retry_failed", "run_job"}:
        from nemo_llm_stage import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
