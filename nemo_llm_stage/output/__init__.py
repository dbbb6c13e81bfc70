"""A completion becomes typed column values. Pure; knows nothing of clients or tables."""

from nemo_llm_stage.output.base import FunctionOutput, Output, TextOutput
from nemo_llm_stage.output.of import output_of

__all__ = ["FunctionOutput", "Output", "TextOutput", "output_of"]
