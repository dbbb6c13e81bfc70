"""Output folders written by earlier versions are resumed: the same settings have the same fingerprint for ever."""

from __future__ import annotations

import pickle
import re
from typing import Any

import pyarrow as pa
import pytest

from nemo_llm_stage import GenerationConfig, LLMStage, MultiColumnStage, PlainFormatter, Prompt, Stage
from nemo_llm_stage.testing import ScriptedClient

SCHEMA = {
    "type": "object",
    "properties": {"year": {"type": "integer"}, "who": {"type": "string"}},
    "required": ["year"],
}


def make(**settings: Any) -> LLMStage:
    defaults = {"client": ScriptedClient([]), "model": "m", "prompt": "Say {{ text }}", "output_column": "x"}
    return LLMStage(**defaults | settings)


def several() -> MultiColumnStage:
    second = make(output_column="b", prompt="{{ a }} {{ lang }}", deduplicate=True, give_up_after_s=3.0)
    return MultiColumnStage([make(output_column="a"), second], keep_if="a != b")


SAMPLED = {"temperature": "{{ t }}", "seed": 3, "max_tokens": 99, "n": 2}
RECOVERY = {"max_reasks": 1, "on_truncated": "retry_longer", "max_tokens_cap": 900}
CHAT = Prompt(messages_column="chat", images="img", on_null="empty", skip_when="text == ''")
EXTRA = GenerationConfig(extra_kwargs={"extra_body": {"min_p": 0.1}}, stop=["a"])


@pytest.mark.parametrize(
    ("stage", "fingerprint"),
    [
        (make(), "4c5619dd65a4e5ebc0a9b5ea7ac805dd"),
        (make(system_prompt="Be {{ mood }}."), "da3c34531fec4dbc3d0223784d502f67"),
        (make(generation_config=SAMPLED, explode=True), "e1aad05dd0929993e2497df34a8aaee5"),
        (make(parser=["yes", "no"], reasoning_column=True, has_meta=False), "90fcb4cba7942ff69b9e9cd2991798c1"),
        (make(parser=SCHEMA, field_columns=True, **RECOVERY), "bceac3d715dc747a44eb326bc27cbce5"),
        (make(parser=re.compile(r"(?P<n>\d+)")), "5754e36db39fcc127d6500eb9ca6860f"),
        (make(parser=len, output_type=pa.int64(), keep_if="x > 3"), "81dc6a6265536118c60b051bc8ec8771"),
        (
            make(conversation_formatter=PlainFormatter(), on_overflow="truncate_input_middle"),
            "c01f0e9d341082417ea543dab85d5a09",
        ),
        (make(prompt=CHAT), "ab4bb91e332e9649ecabb5b7b5547b85"),
        (make(generation_config=EXTRA), "b1497f7104043817f292a90a141b3364"),
        (several(), "4fe1e143bf0eb52acca421091722d0ad"),
        (MultiColumnStage([make()]), "cac84f4e22a25a30d28ad3046d75f20d"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_fingerprint_of_these_settings_never_changes(stage: Stage, fingerprint: str) -> None:
    """A new setting must leave it as it is while it has its default."""
    assert stage.fingerprint == fingerprint
    assert pickle.loads(pickle.dumps(stage)).fingerprint == fingerprint
