"""
Describe parts of Python's standard library in one sentence each.

As it is, this runs on the embedded model over the documentation that comes with this Python (PSF licence), a few dozen
texts in a minute on a laptop's CPU. The model is very small: about one answer in four misses the point. With --base-url
and --model it runs on any OpenAI-compatible server, with --input on any Parquet or JSONL with columns `id` and `text`,
and on a cluster by `ray job submit --working-dir . -- python pipelines/describe_python_docs.py`.
"""

from nemo_llm_stage.cli import pipeline

pipeline(
    __doc__,
    demo_rows=24,
    output="out/python_docs",
    client="local",
    prompt="Say in one short sentence what {{ id }} does:\n\n{{ text }}",
    output_column="description",
    generation_config={"max_tokens": 32},
)
