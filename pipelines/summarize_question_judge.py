"""
Make training data in one pass: summary, then question, then answer, then a judge; pairs of a low score are dropped.

Each prompt waits for the answers that it uses, row by row. As it is, this runs on the embedded model over documentation
that comes with this Python (PSF licence); --base-url and --model take any OpenAI-compatible server, --input any Parquet
or JSONL with a column `text`. --set columns.3.model=… has another model be the judge.
"""

from nemo_llm_stage.cli import pipeline

pipeline(
    __doc__,
    demo_rows=6,
    output="out/question_pairs",
    client="local",
    system_prompt="You are a careful writer. Use only what the given text says.",
    generation_config={"max_tokens": 96},
    columns=[
        {
            "output_column": "summary",
            "prompt": "Summarize in two sentences:\n\n{{ text | truncate_chars(3000) }}",
        },
        {
            "output_column": "question",
            "prompt": "Write one question that this text answers, and nothing else.\n\n{{ summary }}",
        },
        {
            "output_column": "answer",
            "prompt": "Text:\n{{ text | truncate_chars(3000) }}\n\nAnswer in one sentence: {{ question }}",
        },
        {
            "output_column": "score",
            "prompt": (
                "Does the answer below follow from the text and answer the question? Give a score from 1 (no) to 5 "
                "(fully), the number alone.\n\nText:\n{{ summary }}\n\nQuestion: {{ question }}\nAnswer: {{ answer }}"
            ),
            "answer": {"type": "choices", "choices": ["1", "2", "3", "4", "5"], "guided": "json"},
            "generation_config": {"max_tokens": 8},
        },
    ],
    keep_if="score | int >= 3",
)
