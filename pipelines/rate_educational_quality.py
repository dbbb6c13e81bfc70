"""
Rate texts from 0 to 5 by how much a learner gets out of them, to keep the best for training.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
The idea is that of FineWeb-Edu (Penedo et al., 2024); the words of the prompt are our own.
"""

from nemo_llm_stage.cli import pipeline

pipeline(
    __doc__,
    demo_rows=12,
    output="out/educational_quality",
    client="local",
    system_prompt="You judge how useful a text is for learning. You answer with one digit.",
    prompt=(
        "Rate the text below from 0 to 5.\n"
        "0: nothing can be learned from it. 1: a fact or two, badly told. 2: useful parts among noise.\n"
        "3: a fair explanation. 4: clear and correct. 5: fit for a textbook.\n\n"
        "Text:\n{{ text | truncate_chars(4000) }}\n\nRating (0 to 5):"
    ),
    output_column="educational_quality",
    answer={"type": "regex", "pattern": r"([0-5])", "arrow_type": "int8"},
    generation_config={"max_tokens": 8},
)
