"""A row becomes messages: templates in a sandbox, nulls, images. Pure; knows nothing of clients or tables."""

from nemo_llm_stage.prompt.prompt import Prompt
from nemo_llm_stage.prompt.template import Expression, OnNull, Template

__all__ = ["Expression", "OnNull", "Prompt", "Template"]
