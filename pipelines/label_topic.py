"""
Label texts with one of a few topics.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
On vLLM, --set answer.guided=true has the server write nothing but a label.
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
    answer={"type": "choices", "choices": TOPICS},
    generation_config={"max_tokens": 8},
)
