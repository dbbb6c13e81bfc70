"""
Translate texts to another language: --set prompt=… for another than French.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
"""

from nemo_llm_stage.cli import pipeline

pipeline(
    __doc__,
    demo_rows=8,
    output="out/french",
    client="local",
    system_prompt="You are a translator. You answer with the translation and nothing else.",
    prompt="Translate to French:\n\n{{ text | truncate_chars(4000) }}",
    output_column="french",
    generation_config={"max_tokens": 96},
)
