"""
Renew the cookbook of pipelines/README.md: each pipeline's settings, and a row that it really answered.

Runs every pipeline on the embedded model, or on your own server, and keeps one answered row of each in answers.json:
the first one of at most 240 characters, whatever the answer. The text is made of the scripts' settings and of that
file; a test compares the two.

    python pipelines/cookbook/renew.py                                 # runs all pipelines, a few minutes
    python pipelines/cookbook/renew.py label_topic.py judge.py         # runs these, keeps the other rows
    python pipelines/cookbook/renew.py --text                          # runs nothing, only writes the text again
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from nemo_llm_stage.embedded.local_server import LocalServer

FOLDER = Path(__file__).parent
PIPELINES = FOLDER.parent
README = PIPELINES / "README.md"
ANSWERS = FOLDER / "answers.json"
BEGIN, END = "<!-- cookbook: made by cookbook/renew.py -->", "<!-- end of the cookbook -->"
MAX_CHARS = 240
NUM_ROWS = 24
EMBEDDED = "the embedded model, SmolLM2-135M"


def scripts() -> list[str]:
    """Return the names of all pipelines, in the order of the README's table."""
    return re.findall(r"^\| `(\w+\.py)` \|", README.read_text(), re.MULTILINE)


def settings_of(script: str) -> dict[str, Any]:
    """Return the words that a script hands to `pipeline` or to `LLMStage`, without running it."""
    tree = ast.parse((PIPELINES / script).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    call = next(call for call in calls if call.func.id in {"pipeline", "LLMStage"})
    names: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and all(isinstance(target, ast.Name) for target in node.targets):
            constants = ast.Module([node], type_ignores=[])
            try:
                exec(compile(constants, script, "exec"), names)  # noqa: S102 - our own scripts
            except NameError:
                continue  # a table of classes, which is no setting
    words = {str(word.arg): ast.unparse(word.value) for word in call.keywords if word.arg != "client"}
    names["Prompt"] = lambda prompt, messages: {"prompt": prompt, "messages": messages}
    names["model"] = None
    settings = {name: eval(value, names) for name, value in words.items()}  # noqa: S307 - as above
    if isinstance(settings.get("prompt"), dict):
        settings |= settings["prompt"]
    return {name: value for name, value in settings.items() if name not in {"demo_rows", "output", "model"}}


def fingerprint(settings: dict[str, Any]) -> str:
    """Return what changes with the settings: a row that was answered with others is not to be shown."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def answered_row(script: str, base_url: str, model: str) -> dict[str, Any]:
    """Run a pipeline and return its row to show: the input's `id` and `text`, and the columns it made."""
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/out"
        words = [sys.executable, str(PIPELINES / script), "--output", output, "--rows", str(NUM_ROWS)]
        words += ["--base-url", base_url, "--model", model]
        if script != "curator_annotate.py":
            words += ["--client", "http", "--engine", "local", "--no-progress", "--max-failed-rows", "1.0"]
        subprocess.run(words, check=True, stdout=sys.stderr)  # noqa: S603 - as above
        rows = pq.read_table(output).to_pylist()
    columns = [name.removesuffix("_error") for name in rows[0] if name.endswith("_error")] if rows else []
    for row in rows:
        if len(row["text"]) <= MAX_CHARS and all(row[column] is not None for column in columns):
            return {name: row[name] for name in ("id", "text", *columns)}
    raise SystemExit(f"{script}: none of {len(rows)} rows can be shown")


def renew(names: list[str], base_url: str | None, model: str | None) -> None:
    """Run the pipelines and keep a row of each."""
    with ExitStack() as stack:
        shown_model = model or EMBEDDED
        if base_url is None:
            server = stack.enter_context(LocalServer())
            base_url, model = server.base_url, server.model
        for script in names:
            row = answered_row(script, base_url, str(model))
            answers = json.loads(ANSWERS.read_text()) if ANSWERS.exists() else {}
            answers[script] = {"settings": fingerprint(settings_of(script)), "model": shown_model, "row": row}
            answers = {name: answers[name] for name in scripts() if name in answers}
            ANSWERS.write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")


def cookbook() -> str:
    """Return the text of the cookbook."""
    answers = json.loads(ANSWERS.read_text())
    return "".join(f"{entry(script, answers[script])}\n" for script in scripts() if script in answers)


def entry(script: str, answer: dict[str, Any]) -> str:
    """Return the entry of one pipeline."""
    settings = settings_of(script)
    if answer["settings"] != fingerprint(settings):
        raise SystemExit(f"{script} has changed; renew its row with `python pipelines/cookbook/renew.py {script}`")
    row = answer["row"]
    parts = asked(settings)
    for column in settings.get("columns", []):
        parts += [(f"{column['output_column']}: {name}", text) for name, text in asked(column)]
    if "keep_if" in settings:
        parts.append(("keep_if", settings["keep_if"]))
    parts += [("input", row["text"])]
    parts += [(f"→ {name}", shown(value)) for name, value in row.items() if name not in {"id", "text"}]
    width = max(len(name) for name, _ in parts) + 2
    body = "\n".join(name.ljust(width) + indented(text, width) for name, text in parts)
    return f"### {script}\n\n{purpose(script)} Answered by {answer['model']}.\n\n```text\n{body}\n```\n"


def asked(column: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what a column sends, and which answers it accepts."""
    parts = [(name.partition("_")[0], column[name]) for name in ("system_prompt", "prompt") if name in column]
    messages = column.get("messages", [])
    examples = [f"{turn['role']}: {turn['content']}" for turn in messages[:2]]
    if examples:
        parts.insert(-1, (f"example (of {len(messages) // 2})", "\n".join(examples)))
    if "answer" in column:
        answer = yaml.safe_dump(column["answer"], default_flow_style=True, width=10_000, sort_keys=False)
        parts.append(("answer", answer.strip()))
    return parts


def shown(value: Any) -> str:
    """Return an answer as text."""
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def indented(text: str, width: int) -> str:
    """Break lines that are too long for a page, and indent all but the first."""
    lines = [textwrap.fill(line, 112 - width, break_on_hyphens=False) for line in text.splitlines()]
    return textwrap.indent("\n".join(lines), " " * width)[width:]


def purpose(script: str) -> str:
    """Return the first sentence of a script's description."""
    description = ast.get_docstring(ast.parse((PIPELINES / script).read_text())) or ""
    return " ".join(description.split("\n\n")[0].split())


def text_with(readme: str) -> str:
    """Return the README with the cookbook as it should be."""
    before, _, rest = readme.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{cookbook()}{END}{rest.partition(END)[2]}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scripts", nargs="*", help="pipelines to run [all but curator_annotate.py]")
    parser.add_argument("--text", action="store_true", help="run nothing; write the text again")
    parser.add_argument("--base-url", help="server to run them on [the embedded model]")
    parser.add_argument("--model", help="the model's name there")
    given = parser.parse_args()
    if not given.text:
        names = given.scripts or [script for script in scripts() if script != "curator_annotate.py"]
        renew(names, given.base_url, given.model)
    README.write_text(text_with(README.read_text()))


if __name__ == "__main__":
    main()
