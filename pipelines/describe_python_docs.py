"""
Describe parts of Python's standard library in one sentence each.

As it is, this runs on the embedded model over the documentation that comes with this Python (PSF licence), a few dozen
texts in a minute on a laptop's CPU. The model is very small: it gets the first sentence of each text, and examples.
With --base-url and --model it runs on any OpenAI-compatible server, with --input on any Parquet or JSONL with columns
`id` and `text`, and on a cluster by `ray job submit --working-dir . -- python pipelines/describe_python_docs.py`.
"""

from nemo_llm_stage.cli import pipeline

EXAMPLES = {
    "heapq.heappop: Pop the smallest item off the heap, maintaining the heap invariant.": (
        "heapq.heappop pops the smallest item off the heap."
    ),
    "KeyError: Raised when a mapping key is not found in the set of existing keys.": (
        "KeyError is raised when a mapping key is not found."
    ),
    "calendar.HTMLCalendar: This calendar returns complete HTML pages.": (
        "calendar.HTMLCalendar is a calendar that returns complete HTML pages."
    ),
    "ftplib.FTP.connect: Connect to host.": "ftplib.FTP.connect connects to a host.",
    "statistics.median: Return the median (middle value) of numeric data.": (
        "statistics.median returns the middle value of numeric data."
    ),
    "copy.copy: Shallow copy operation on arbitrary Python objects.": (
        "copy.copy makes a shallow copy of any Python object."
    ),
    "os.path.isabs: Test whether a path is absolute.": "os.path.isabs tests whether a path is absolute.",
    "shelve: Manage shelves of pickled objects.": "shelve manages shelves of pickled objects.",
    'cmd.Cmd.do_help: List available commands with "help" or detailed help with "help cmd".': (
        "cmd.Cmd.do_help lists the available commands."
    ),
}

pipeline(
    __doc__,
    demo_rows=24,
    output="out/python_docs",
    client="local",
    messages=[
        {"role": role, "content": content}
        for example in EXAMPLES.items()
        for role, content in zip(("user", "assistant"), example, strict=True)
    ],
    prompt="{{ id }}: {{ (text.split() | join(' ')).split('. ')[0] }}",
    output_column="description",
    generation_config={"max_tokens": 64, "stop": ["\n"]},
)
