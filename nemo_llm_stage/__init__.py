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

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from nemo_llm_stage.run import retry_failed, run_job
    from nemo_llm_stage.stage.llm_stage import LLMStage
    from nemo_llm_stage.stage.multi import MultiColumnStage
    from nemo_llm_stage.stage.stage import Stage

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

_MODULES = {
    "AsyncHTTPClient": "client.http_client",
    "AsyncLLMClient": "client.llm_client",
    "AsyncOpenAIClient": "client.openai_client",
    "ChoiceOutput": "output",
    "Completion": "core",
    "ConfigError": "errors",
    "ConversationFormatter": "client.llm_client",
    "Counters": "counters",
    "FatalError": "errors",
    "GenerationConfig": "client.llm_client",
    "HFChatTemplateFormatter": "client.formatters",
    "InputError": "errors",
    "JobResult": "job.result",
    "JsonOutput": "output",
    "LLMClient": "client.llm_client",
    "LLMStage": "stage.llm_stage",
    "LLMStageError": "errors",
    "MultiColumnStage": "stage.multi",
    "OpenAIClient": "client.openai_client",
    "Output": "output",
    "OutputConflictError": "errors",
    "ParseError": "errors",
    "PlainFormatter": "client.formatters",
    "Prompt": "prompt",
    "RegexOutput": "output",
    "RequestError": "errors",
    "RowError": "errors",
    "RowResult": "core",
    "RunError": "errors",
    "Stage": "stage.stage",
    "TransientError": "errors",
    "Usage": "core",
    "retry_failed": "run",
    "run_job": "run",
}
"""The module of each name: a program that imports a client alone does not pay for Arrow and file systems."""


def __getattr__(name: str) -> Any:
    """Import the name's module when the name is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    """Name what can be imported, imported or not."""
    return sorted({*globals(), *__all__})
