"""A completion becomes typed column values. Pure; knows nothing of clients or tables."""

from nemo_llm_stage.output.base import FunctionOutput, Output, TextOutput
from nemo_llm_stage.output.choices import ChoiceOutput
from nemo_llm_stage.output.json_output import JsonOutput
from nemo_llm_stage.output.of import OutputLike, output_of
from nemo_llm_stage.output.reask import reask_messages
from nemo_llm_stage.output.reasoning import split_reasoning, without_reasoning
from nemo_llm_stage.output.regex import RegexOutput

__all__ = [
    "ChoiceOutput",
    "FunctionOutput",
    "JsonOutput",
    "Output",
    "OutputLike",
    "RegexOutput",
    "TextOutput",
    "output_of",
    "reask_messages",
    "split_reasoning",
    "without_reasoning",
]
