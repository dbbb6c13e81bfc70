"""
Judge texts with a model: a score from 1 to 10 and the reason for it, as a struct column to filter by.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
"""

from nemo_llm_stage.cli import pipeline

VERDICT = {
    "type": "object",
    "properties": {"reason": {"type": "string"}, "score": {"type": "integer", "minimum": 1, "maximum": 10}},
    "required": ["reason", "score"],
}

pipeline(
    __doc__,
    demo_rows=8,
    output="out/judged",
    client="local",
    system_prompt="You are a strict reviewer of documentation.",
    prompt=(
        "Judge the text below: is it complete, correct in form, and easy to follow? First the reason in one sentence, "
        "then a score from 1 (useless) to 10 (excellent).\n\nText:\n{{ text | truncate_chars(3000) }}"
    ),
    output_column="verdict",
    answer={"type": "json", "schema": VERDICT},
    generation_config={"max_tokens": 100},
)
