"""
Make question-answer pairs about texts, as synthetic training data: a list of structs for each text.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
The idea is that of Nemotron-CC's diverse QA pairs (Su et al., 2024); the words of the prompt are our own.
"""

from nemo_llm_stage.cli import pipeline

PAIR = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "answer": {"type": "string"}},
    "required": ["question", "answer"],
}

pipeline(
    __doc__,
    demo_rows=6,
    output="out/questions",
    client="local",
    prompt=(
        "Write two short questions that the text below answers, each with its answer from the text.\n\n"
        "Text:\n{{ text | truncate_chars(4000) }}"
    ),
    output_column="pairs",
    answer={"type": "json", "schema": {"type": "array", "items": PAIR, "minItems": 1, "maxItems": 2}},
    generation_config={"max_tokens": 200},
)
