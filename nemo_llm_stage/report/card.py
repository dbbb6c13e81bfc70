"""
The dataset card of a job's output, as Hugging Face's hub shows it: what the columns are and how they were made.

Pure but for reading the output folder. Nothing of it is a guess: what the folder does not tell is left out.

Source: https://huggingface.co/docs/hub/datasets-cards and https://github.com/huggingface/hub-docs/blob/main/datasetcard.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from nemo_llm_stage.counters import Counters
from nemo_llm_stage.dataset.folder import OutputFolder
from nemo_llm_stage.dataset.recount import output_columns_of
from nemo_llm_stage.dataset.summary import TMP
from nemo_llm_stage.dataset.verify import Verification, verify
from nemo_llm_stage.dataset.writing import writing_to
from nemo_llm_stage.job.record import open_output, read_record
from nemo_llm_stage.report.units import percent

CARD = "README.md"
DATA = "data"
"""Folder of the data files on the hub."""

_SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
_SIZE_WORDS = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
_DTYPES = {"double": "float64", "float": "float32", "halffloat": "float16"}


def write_card(url: str, license_id: str) -> str:
    """
    Write the card into the state folder of the job in `url`, beside the data, and return where it lies.

    Raises:
        OutputConflictError: No job of this package has written there.
        RunError: A committed file cannot be read, or the folder cannot be written.
    """
    output, _ = open_output(url)
    with writing_to(url):
        output.state.replace_bytes(card(url, license_id).encode(), CARD, scratch_sub=TMP)
    return output.state.path(CARD)


def card(url: str, license_id: str, verification: Verification | None = None) -> str:
    """
    Return the card; raises as `write_card`.

    Args:
        url: The output folder.
        license_id: As the hub names it, e.g. ``cc-by-4.0``.
        verification: What the committed files say, where that is known.
    """
    output, plan = open_output(url)
    record = read_record(url)
    verification = verification or verify(output, plan)
    counters = verification.counters
    name = url.rstrip("/").rpartition("/")[2]
    parts = [
        _header(output, record, counters, license_id),
        f"# {name}\n",
        _opening(record, counters),
        _columns(record, output, plan.schema.names),
        *_how(record),
        _counts(counters, verification),
        _provenance(record),
    ]
    return "\n".join(parts)


def _header(output: OutputFolder, record: Mapping[str, Any], counters: Counters, license_id: str) -> str:
    suffix = "parquet" if record["output_format"] == "parquet" else "jsonl"
    lines = [
        "---",
        f"license: {_yaml(license_id)}",
        f"size_categories:\n- {_size(counters.num_rows)}",
        "tags:\n- synthetic\n- nemo-llm-stage",
        *_features(output, counters),
        f"configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {DATA}/part-*.{suffix}",
        "---\n",
    ]
    return "\n".join(lines)


def _features(output: OutputFolder, counters: Counters) -> Iterator[str]:
    names = sorted(output.committed())
    if output.format != "parquet" or not names:
        return
    with output.folder.fs.open(output.folder.path(names[0]), "rb") as file:
        schema = pq.read_schema(file)
    features = [_feature(field.name, field.type) for field in schema]
    if None in features:  # the hub finds out by itself
        return
    yield "dataset_info:\n  features:"
    for feature in features:
        yield from _lines([feature], 2)
    yield f"  splits:\n  - name: train\n    num_examples: {counters.num_rows - counters.num_dropped}"


def _feature(name: str, kind: pa.DataType) -> dict[str, Any] | None:
    """Return a column as `datasets.Features` writes it; None for a type that it does not have."""
    told = _type(kind)
    return None if told is None else {"name": name, **told}


def _type(kind: pa.DataType) -> dict[str, Any] | None:
    if pa.types.is_dictionary(kind):
        return _type(kind.value_type)
    if pa.types.is_struct(kind):
        fields = [_feature(field.name, field.type) for field in kind]
        return None if None in fields or not fields else {"struct": fields}
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _type(kind.value_type)
        if item is None:
            return None
        told = {"large_list" if pa.types.is_large_list(kind) else "list": item.get("dtype", item.get("struct", item))}
        return {**told, "length": kind.list_size} if pa.types.is_fixed_size_list(kind) else told
    if pa.types.is_nested(kind) or pa.types.is_date64(kind) or isinstance(kind, pa.BaseExtensionType):
        return None
    return {"dtype": _DTYPES.get(str(kind), str(kind))}


def _lines(items: Sequence[Any], depth: int) -> Iterator[str]:
    """Yield a list of mappings as YAML."""
    for item in items:
        yield from _mapping_lines(item, depth, "- ")


def _mapping_lines(item: Mapping[str, Any], depth: int, lead: str = "  ") -> Iterator[str]:
    for key, value in item.items():
        indent = " " * depth + lead
        if isinstance(value, list):
            yield f"{indent}{key}:"
            yield from _lines(value, depth + 2)
        elif isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _mapping_lines(value, depth + 2)
        else:
            yield f"{indent}{key}: {_yaml(value) if isinstance(value, str) else value}"
        lead = "  "


def _yaml(text: str) -> str:
    """Return a text as a scalar of YAML: plain where that is safe, else quoted as JSON."""
    is_plain = re.fullmatch(r"[A-Za-z][\w.\[\](), -]*[\w\])]|[A-Za-z]", text)
    is_word = text.lower() in {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}
    return text if is_plain and not is_word and ", " not in text else orjson.dumps(text).decode()


def _size(num_rows: int) -> str:
    for place, bound in enumerate(_SIZES):
        if num_rows < bound:
            return f"n<{_SIZE_WORDS[0]}" if not place else f"{_SIZE_WORDS[place - 1]}<n<{_SIZE_WORDS[place]}"
    return "n>1B"


def _stages(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    stage = record["stage"]
    return dict(stage["columns"]) if "columns" in stage else {output_columns_of(record)[0]: stage}


def _opening(record: Mapping[str, Any], counters: Counters) -> str:
    stages = _stages(record)
    models = ", ".join(dict.fromkeys(f"`{stage['model']}`" for stage in stages.values()))
    columns = ", ".join(f"`{name}`" for name in stages)
    subject = f"The column {columns} was" if len(stages) == 1 else f"The columns {columns} were"
    return f"{counters.num_rows:,} rows. {subject} written by {models}; all other columns are those of the input.\n"


_COLUMN_WORDS = {
    "": "the answer; null where there is none",
    "_error": "why an answer failed, as `kind: message`; null else",
    "_skipped": "why a row was not asked; null else",
    "_reasoning": "what the model thought before it answered",
    "_choice": "which of several answers it is, from 0",
    "_meta": "finish reason, tokens, latency, model and server of the answer",
}


def _columns(record: Mapping[str, Any], output: OutputFolder, of_input: Sequence[str]) -> str:
    names = {name for row in output.head(1) for name in row} - set(of_input)
    lines = ["## Columns\n", "| column | what it holds |", "| --- | --- |"]
    stages = _stages(record)
    known = {column: {column + suffix: words for suffix, words in _COLUMN_WORDS.items()} for column in stages}
    others = names.difference(*known.values())
    for column in sorted(stages, key=len, reverse=True):  # `a_b_c` is of `a_b` before it is of `a`
        fields = sorted(name for name in others if name.startswith(f"{column}_"))
        known[column] |= dict.fromkeys(fields, "a field of the answer")
        others -= set(fields)
    for column in stages:
        lines += [f"| `{name}` | {words} |" for name, words in known[column].items() if name in names]
    return "\n".join([*lines, ""])


def _how(record: Mapping[str, Any]) -> Iterator[str]:
    yield "## How it was made\n"
    for name, stage in _stages(record).items():
        prompt = stage["prompt"]
        yield f"### `{name}`\n\nModel: `{stage['model']}`\n"
        if prompt.get("system_prompt"):
            yield f"System prompt:\n\n{_fenced(prompt['system_prompt'])}\n"
        for turn in prompt.get("messages", ()):
            role = str(turn["role"]).capitalize()
            yield f"{role}, a Jinja2 template over the columns:\n\n{_fenced(turn['content'])}\n"
        if prompt.get("function"):
            yield f"The prompt is made by the function `{prompt['function']}`.\n"
        settings = {key: value for key, value in stage.items() if key not in ("prompt", "model") and value is not None}
        yield f"Settings:\n\n{_fenced(orjson.dumps(settings, option=orjson.OPT_INDENT_2).decode(), 'json')}\n"


def _counts(counters: Counters, verification: Verification) -> str:
    lines = ["## Counts\n", "| | |", "| --- | ---: |"]
    for outcome in ("answered", "failed", "skipped", "dropped"):
        num = getattr(counters, f"num_{outcome}")
        lines.append(f"| {outcome} | {num:,} ({percent(num, counters.num_rows)}) |")
    lines += [
        f"| answers cut off at `max_tokens` | {counters.num_cut_off:,} |",
        f"| rows of the input that could not be read | {counters.num_left_out:,} |",
        f"| input tokens | {counters.input_tokens:,} |",
        f"| output tokens | {counters.output_tokens:,} |",
    ]
    for kind, num in sorted(counters.errors.items(), key=lambda item: -item[1]):
        lines.append(f"| failed with `{kind}` | {num:,} |")
    whole = "Every row of the input is accounted for." if verification.is_complete else "The job is not finished."
    return "\n".join([*lines, "", f"{whole}\n"])


def _provenance(record: Mapping[str, Any]) -> str:
    files = record["files"]
    names = [str(file["path"]).rpartition("/")[2] for file in files[:5]]
    listed = ", ".join(f"`{name}`" for name in names) + (f" and {len(files) - 5:,} more" if len(files) > 5 else "")
    return (
        "## Provenance\n\n"
        f"Input: {len(files):,} file{'s' * (len(files) != 1)}, {listed}. Made with nemo_llm_stage "
        f"{record['package_version']}, begun at {record['created_at']}; fingerprint of the settings: "
        f"`{record['fingerprint']}`.\n"
    )


def _fenced(text: str, language: str = "text") -> str:
    """Return a block of code whose fence is longer than any in the text."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
