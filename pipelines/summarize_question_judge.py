"""
Make training data in one pass: summary, then question, then answer, then a judge; pairs that it rejects are dropped.

Each prompt waits for the answers that it uses, row by row. Pairs whose answer is copied from the text, or repeats the
question, are dropped by rule. As it is, this runs on the embedded model over documentation that comes with this Python
(PSF licence). That model shows how it works; it cannot judge: of 48 answers it told 20 right from wrong, no better than
a coin. --base-url and --model take any OpenAI-compatible server, --input any Parquet or JSONL with a column `text`;
--set columns.3.model=… has another model be the judge.
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
            "system_prompt": "Ask one question that the text answers.",
            "messages": [
                {"role": "user", "content": "Return the number of items in the list."},
                {"role": "assistant", "content": "What does it return for a list?"},
                {"role": "user", "content": "Raises KeyError if the name is unknown."},
                {"role": "assistant", "content": "When does it raise KeyError?"},
            ],
            "prompt": "{{ summary }}",
            "generation_config": {"max_tokens": 32, "stop": ["\n"]},
        },
        {
            "output_column": "answer",
            "prompt": "Text:\n{{ text | truncate_chars(3000) }}\n\nAnswer in one sentence: {{ question }}",
        },
        {
            "output_column": "verdict",
            "prompt": (
                "Text: {{ summary }}\n\nQuestion: {{ question }}\nAnswer: {{ answer }}\n\n"
                "Is the answer right, going by the text? Say good or bad."
            ),
            "answer": {"type": "choices", "choices": ["good", "bad"], "guided": "json"},
            "generation_config": {"max_tokens": 8},
        },
    ],
    keep_if="verdict == 'good' and answer not in text and answer != question",
)
