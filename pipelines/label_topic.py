"""
Label texts with one of a few topics.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
The labels are sent as a JSON Schema, so that a server that takes one writes nothing else; each answer is checked.
"""

from nemo_llm_stage.cli import pipeline

TOPICS = ["files", "networking", "text", "numbers", "testing", "concurrency", "language", "other"]

pipeline(
    __doc__,
    demo_rows=12,
    output="out/topics",
    client="local",
    prompt=(
        "Which topic fits the text best? Answer with one of these words and nothing else: "
        + ", ".join(TOPICS)
        + ".\n\nText:\n{{ text | truncate_chars(2000) }}\n\nTopic:"
    ),
    output_column="topic",
    answer={"type": "json", "schema": {"type": "string", "enum": TOPICS}},
    generation_config={"max_tokens": 12},
)
