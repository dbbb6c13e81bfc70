"""
The OpenAI protocol: a request as bytes, an answer as a Completion, and what counts as an answer.

The wire's own words (``prompt_tokens``, ``choices``) live here and nowhere else. Everything that a server says is
checked and typed here, once: past this room each field of a Completion has the type that its name says. Pure: knows
nothing of connections.
"""

from nemo_llm_stage.client.wire.decode import completion_of_answer, decode_answer
from nemo_llm_stage.client.wire.encode import CHAT_PATH, TEXT_PATH, WireRequest, encode_request
from nemo_llm_stage.client.wire.finish_reason import Finish, finish_of
from nemo_llm_stage.client.wire.stream import StreamedAnswer

__all__ = [
    "CHAT_PATH",
    "TEXT_PATH",
    "Finish",
    "StreamedAnswer",
    "WireRequest",
    "completion_of_answer",
    "decode_answer",
    "encode_request",
    "finish_of",
]
