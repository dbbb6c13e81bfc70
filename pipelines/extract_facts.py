"""
Extract facts from texts into a struct column with exact types.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
"""

from nemo_llm_stage.cli import pipeline

FACTS = {
    "type": "object",
    "properties": {
        "subject": {"type": "string"},
        "purpose": {"type": "string"},
        "mentions_errors": {"type": "boolean"},
        "num_arguments": {"type": ["integer", "null"]},
    },
    "required": ["subject", "purpose", "mentions_errors"],
}

pipeline(
    __doc__,
    demo_rows=8,
    output="out/facts",
    client="local",
    prompt=(
        "Fill in what the documentation below says: its subject, its purpose in a few words, whether it mentions "
        "errors, and how many arguments it names.\n\n{{ text | truncate_chars(3000) }}"
    ),
    output_column="facts",
    answer={"type": "json", "schema": FACTS},
    generation_config={"max_tokens": 120},
)
