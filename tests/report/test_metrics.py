"""What monitoring systems get of a job while it runs, and that the dashboard asks for nothing else."""

from __future__ import annotations

import gzip
import json
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from nemo_llm_stage import AsyncHTTPClient, ConfigError, LLMStage, run_job
from nemo_llm_stage.cli import main
from nemo_llm_stage.client.endpoint_status import EndpointStatus, bucket_of
from nemo_llm_stage.counters import Counters
from nemo_llm_stage.report.metrics.figures import BOUNDS_S, FAMILIES, figures_of, server_of
from nemo_llm_stage.report.progress.view import EndpointView, View
from nemo_llm_stage.testing import Fault, SimulatedServer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def server() -> Iterator[SimulatedServer]:
    with SimulatedServer(service_time_s=0.1, model="sim") as server:
        yield server


def run(server: SimulatedServer, folder: Path, num_rows: int = 60, **settings: Any) -> None:
    rows = folder / "in.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(num_rows)]}), rows)
    stage = LLMStage(
        client=AsyncHTTPClient(server.base_url, max_concurrent_requests=4, max_retries=9, base_delay=0.01),
        model="sim",
        prompt="{{ text }}",
        output_column="x",
    )
    job = {"engine": "local", "progress": False, "price_input": 1.0, "price_output": 2.0, "max_failed_rows": None}
    run_job(stage=stage, input=rows, output=folder / "out", **(job | settings))


def read_metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        return str(response.read().decode())


def value_of(text: str, name: str, **labels: str) -> float:
    for line in text.splitlines():
        if line.startswith(f"{name}{{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"{name} {labels} is not in\n{text}")


@pytest.fixture
def scraped(server: SimulatedServer, tmp_path: Path) -> str:
    """What Prometheus reads of a job in its middle."""
    server.faults = [Fault(400, contains="row 3"), Fault(429, rate=0.2)]
    port = free_port()
    job = threading.Thread(target=run, args=(server, tmp_path, 100), kwargs={"metrics_port": port})
    job.start()
    text, until = "", time.monotonic() + 30
    while "time_left" not in text and time.monotonic() < until:
        try:
            text = read_metrics(port)
        except OSError:
            time.sleep(0.05)
    job.join()
    with pytest.raises(OSError, match="refused"):
        read_metrics(port)
    return text


@pytest.mark.slow
def test_a_live_job_exposes_every_metric(scraped: str) -> None:
    """And the dashboard of the package asks for none that it does not."""
    shown = set(re.findall(r"^(\w+)\{", scraped, re.MULTILINE))
    assert shown == {name for family in FAMILIES for name in family.series_names} | {
        name for name in shown if name.endswith("_created")
    }
    made = CliRunner().invoke(main, ["dashboard"])
    asked = set(re.findall(r"\$\{prefix\}(\w+)", made.stdout))
    assert asked <= shown
    assert len(json.loads(made.stdout)["panels"]) > 10
    num_rows = sum(value_of(scraped, "nemo_llm_stage_rows_total", outcome=word) for word in ("answered", "failed"))
    assert 20 <= num_rows <= 100
    assert value_of(scraped, "nemo_llm_stage_rows_planned") == 100
    assert value_of(scraped, "nemo_llm_stage_failures_total", error_type="bad_request") > 0
    assert value_of(scraped, "nemo_llm_stage_requests_total", result="rate_limited") > 0
    assert value_of(scraped, "nemo_llm_stage_requests_limit") == 4
    assert value_of(scraped, "nemo_llm_stage_phase", phase="running") == 1
    tokens = value_of(scraped, "gen_ai_client_token_usage_sum", gen_ai_token_type="output", gen_ai_request_model="sim")
    assert tokens > 0
    num_answers = value_of(scraped, "gen_ai_client_operation_duration_seconds_count")
    assert num_answers == value_of(scraped, "nemo_llm_stage_requests_total", result="answered")
    assert 0.05 < value_of(scraped, "gen_ai_client_operation_duration_seconds_sum") / num_answers < 0.5


def test_a_port_that_is_taken_stops_the_job_before_it_starts(server: SimulatedServer, tmp_path: Path) -> None:
    """Nothing is paid."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        with pytest.raises(ConfigError, match=r"metrics_port \d+ cannot be used"):
            run(server, tmp_path, metrics_port=other.getsockname()[1])
    assert server.stats.num_requests == 0


def test_bounds_are_those_that_latencies_are_counted_by() -> None:
    """So that no count is guessed."""
    assert [bucket_of(bound * 1.0001) - bucket_of(bound * 0.999) for bound in BOUNDS_S] == [1] * len(BOUNDS_S)


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("http://gpu-1:8000/v1", "gpu-1:8000"),
        ("https://user:secret@api.example.com/team/v1", "api.example.com/team"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_server_is_named_without_credentials(url: str, server: str) -> None:
    """Host, port and path."""
    assert server_of(url) == server


class Collector:
    """An OTLP collector: keeps what it is sent."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
                collector.bodies.setdefault(self.path, []).append(body)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "300")
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.mark.slow
def test_metrics_and_spans_go_to_a_collector(server: SimulatedServer, tmp_path: Path, collector: Collector) -> None:
    """As the standard variables say, with the names of the conventions."""
    run(server, tmp_path, rows_per_partition=20)
    last = ExportMetricsServiceRequest.FromString(collector.bodies["/v1/metrics"][-1])
    metrics = {metric.name: metric for metric in last.resource_metrics[0].scope_metrics[0].metrics}
    answered = metrics["nemo_llm_stage.rows"].sum
    assert answered.is_monotonic
    assert answered.data_points[0].as_double + answered.data_points[0].as_int == 60
    latency = metrics["gen_ai.client.operation.duration"]
    assert (latency.unit, latency.histogram.data_points[0].count) == ("s", 60)
    assert sum(latency.histogram.data_points[0].bucket_counts) == 60
    assert metrics["gen_ai.client.token.usage"].histogram.data_points[0].sum > 0
    traces = [ExportTraceServiceRequest.FromString(body) for body in collector.bodies["/v1/traces"]]
    spans = [span for trace in traces for span in trace.resource_spans[0].scope_spans[0].spans]
    names = [span.name for span in spans]
    (job,) = [span for span in spans if span.name == "nemo_llm_stage.job"]
    assert sum(name.startswith("partition part-") for name in names) == 3
    requests = [span for span in spans if span.name == "chat sim"]
    assert requests
    assert all(span.parent_span_id == job.span_id for span in spans if span is not job)
    assert "gen_ai.usage.output_tokens" in {attribute.key for attribute in requests[0].attributes}
    took_s = (requests[0].end_time_unix_nano - requests[0].start_time_unix_nano) / 1e9
    assert 0.05 < took_s < 5
    services = {item.value.string_value for item in traces[0].resource_spans[0].resource.attributes}
    assert "nemo-llm-stage" in services


def test_a_collector_that_is_not_there_harms_nobody(
    server: SimulatedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does one that is not wanted."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    run(server, tmp_path, num_rows=4)
    assert pq.read_table(tmp_path / "out").num_rows == 4


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
def test_grpc_is_said_to_be_unsupported(
    server: SimulatedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    collector: Collector,
    name: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In place of sending HTTP to a port that speaks gRPC."""
    monkeypatch.setenv(name, "grpc")
    run(server, tmp_path, num_rows=4, progress=True)
    assert "only http/protobuf is supported: nothing is sent" in capsys.readouterr().err
    assert not collector.bodies


def test_the_series_for_ray_have_the_names_of_those_on_the_port() -> None:
    """And buckets that add up, as Prometheus wants them."""
    endpoint = EndpointView(EndpointStatus("http://gpu:8000/v1", num_answered=3, latencies=(0,) * 40 + (2, 1)))
    view = View(endpoints=(endpoint,), cost=1.0, left_s=(1.0, 3.0), counters=Counters(errors={"timeout": 1}))
    series = [one for figure in figures_of(view) for one in figure.series()]
    assert {name for name, _, _ in series} == {name for family in FAMILIES for name in family.series_names}
    buckets = [value for name, _, value in series if name == "gen_ai_client_operation_duration_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert (buckets[0], buckets[-1]) == (0, 3)
    labels = {name: tuple(labels) for name, labels, _ in series}
    assert all(labels[name] == tuple(found) for name, found, _ in series)  # Ray fixes them at the first use
