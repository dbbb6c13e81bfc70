"""
Rewrite texts in clear, plain prose, as synthetic training data.

As it is, this runs on the embedded model over documentation that comes with this Python (PSF licence); --base-url and
--model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`.
The idea is that of Nemotron-CC's rephrasing (Su et al., 2024); the words of the prompt are our own.
"""

from nemo_llm_stage.cli import pipeline

pipeline(
    __doc__,
    demo_rows=8,
    output="out/rewritten",
    client="local",
    system_prompt="You rewrite texts in clear English. You keep every fact and add none.",
    prompt="Rewrite this text in plain sentences, as an encyclopedia would:\n\n{{ text | truncate_chars(6000) }}",
    output_column="rewritten",
    on_truncated="retry_longer",
    generation_config={"max_tokens": 96},
)
