"""
Metrics and spans of a job over OTLP, as the standard ``OTEL_*`` variables say.

The only file that knows opentelemetry. It exports from threads of its own; what fails there never fails the job.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from nemo_llm_stage.report.metrics.figures import BOUNDS_S, OUTPUT, Family, Figure, figures_of
from nemo_llm_stage.report.progress.view import View

logger = logging.getLogger(__name__)

DEFAULT_INTERVAL_S = 60.0
"""Source: OTEL_METRIC_EXPORT_INTERVAL of the OpenTelemetry specification."""

CLOSE_S = 10.0
"""The end of a job waits so long for the last export."""

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_NEEDED = "opentelemetry.exporter.otlp.proto.http"


def is_wanted(signal: str) -> bool:
    """Whether the variables ask for ``metrics`` or ``traces`` over OTLP."""
    signal = signal.upper()
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if os.environ.get(f"OTEL_{signal}_EXPORTER", "otlp") != "otlp":
        return False
    return bool(os.environ.get(_ENDPOINT) or os.environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))


def missing_package() -> str | None:
    """Return what to say where the variables ask for what is not installed, or not supported."""
    wanted = [signal for signal in ("metrics", "traces") if is_wanted(signal)]
    if not wanted:
        return None
    if "grpc" in map(_protocol, wanted):
        return "OTEL_EXPORTER_OTLP_PROTOCOL asks for grpc, and only http/protobuf is supported: nothing is sent."
    try:
        if importlib.util.find_spec(_NEEDED) is not None:
            return None
    except ImportError:
        pass
    return "OTEL_* variables ask for OTLP, but nothing is sent: pip install 'nemo-llm-stage[otel]'."


def _protocol(signal: str) -> str | None:
    own = os.environ.get(f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL")
    return own or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")


class OtlpMetrics:
    """
    Sends every metric once in a while, and at the end.

    Args:
        output: The job's output folder.
        view: Returns how the job stands; called from another thread.
    """

    def __init__(self, output: str, view: Callable[[], View]) -> None:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

        self._exporter = OTLPMetricExporter()
        self._output = output
        self._view = view
        self._started_ns = time.time_ns()
        self._is_over = threading.Event()
        interval_ms = os.environ.get("OTEL_METRIC_EXPORT_INTERVAL", "")
        self._interval_s = int(interval_ms) / 1000 if interval_ms.isdigit() else DEFAULT_INTERVAL_S
        self._thread = threading.Thread(target=self._run, name="otlp", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Send the last values."""
        self._is_over.set()
        self._thread.join(CLOSE_S)

    def _run(self) -> None:
        while not self._is_over.wait(max(0.1, self._interval_s)):
            self._export()
        self._export()
        self._exporter.shutdown()

    def _export(self) -> None:
        try:
            self._exporter.export(_metrics_data(self._view(), self._output, self._started_ns))
        except Exception:
            logger.debug("metrics could not be sent", exc_info=True)


def _metrics_data(view: View, output: str, started_ns: int) -> Any:
    from opentelemetry.sdk.metrics import export
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    now_ns = time.time_ns()
    metrics = [
        export.Metric(family.name, family.help, family.unit, _data(family, list(figures), output, started_ns, now_ns))
        for family, figures in groupby(figures_of(view), key=lambda figure: figure.family)
    ]
    scope = export.ScopeMetrics(InstrumentationScope("nemo_llm_stage"), metrics, "")
    return export.MetricsData([export.ResourceMetrics(_resource(), [scope], "")])


def _data(family: Family, figures: list[Figure], output: str, started_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics import export

    cumulative = export.AggregationTemporality.CUMULATIVE

    def labels(figure: Figure) -> dict[str, str]:
        return {OUTPUT: output, **dict(zip(family.labels, figure.labels, strict=True))}

    if family.kind in ("summary", "histogram"):
        bounds = BOUNDS_S if family.kind == "histogram" else ()
        points: list[Any] = [
            export.HistogramDataPoint(
                labels(figure),
                started_ns,
                now_ns,
                figure.num_values,
                figure.value,
                figure.counts,
                bounds,
                None,  # type: ignore[arg-type]  # not known, which the protocol allows
                None,  # type: ignore[arg-type]
            )
            for figure in figures
        ]
        return export.Histogram(points, cumulative)
    points = [export.NumberDataPoint(labels(figure), started_ns, now_ns, figure.value) for figure in figures]
    return export.Sum(points, cumulative, is_monotonic=True) if family.kind == "counter" else export.Gauge(points)


class OtlpSpans:
    """
    A span for the job, and in it one for each committed partition and for a few requests.

    Args:
        output: The job's output folder.
    """

    def __init__(self, output: str) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import set_span_in_context

        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("nemo_llm_stage")
        self._job = self._tracer.start_span("nemo_llm_stage.job", attributes={OUTPUT: output})
        self._context = set_span_in_context(self._job)
        self._model = ""

    def note_view(self, view: View) -> None:
        """Take note of the job's models."""
        self._model = ",".join(view.title.models)

    def add_partition(self, name: str, num_rows: int, num_failed: int, seconds: float) -> None:
        """Add a partition that has just been committed."""
        attributes = {"nemo_llm_stage.rows": num_rows, "nemo_llm_stage.rows.failed": num_failed}
        self._add(f"partition {name}", attributes, time.time(), seconds, None)

    def add_request(self, row: Mapping[str, Any]) -> None:
        """Add the last request of a sampled row; see `nemo_llm_stage.worker.samples`."""
        request = row.get("request")
        if not request or request["seconds"] is None:
            return
        server = urlsplit(request["server"])
        attributes = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": self._model,
            "gen_ai.response.model": request["model"],
            "gen_ai.usage.input_tokens": request["input_tokens"],
            "gen_ai.usage.output_tokens": request["output_tokens"],
            "server.address": server.hostname,
            "server.port": server.port,
        }
        error = next((text.partition(":")[0] for text in row["errors"].values()), None)
        ended_at = datetime.fromisoformat(row["at"]).timestamp()
        self._add(f"chat {self._model}".strip(), attributes, ended_at, request["seconds"], error)

    def close(self, error: BaseException | None) -> None:
        """End the job's span, and send what has not been sent."""
        from opentelemetry.trace import Status, StatusCode

        if error is not None:
            self._job.set_status(Status(StatusCode.ERROR, type(error).__name__))
            self._job.set_attribute("error.type", type(error).__name__)
        self._job.set_attribute("gen_ai.request.model", self._model)
        self._job.end()
        closing = threading.Thread(target=self._provider.shutdown, name="otlp-spans", daemon=True)
        closing.start()
        closing.join(CLOSE_S)

    def _add(
        self, name: str, attributes: Mapping[str, Any], ended_at: float, seconds: float, error: str | None
    ) -> None:
        from opentelemetry.trace import Status, StatusCode

        known = {key: value for key, value in attributes.items() if value not in (None, "")}
        start_ns, end_ns = int((ended_at - seconds) * 1e9), int(ended_at * 1e9)
        span = self._tracer.start_span(name, self._context, start_time=start_ns, attributes=known)
        if error is not None:
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", error)
        span.end(end_ns)


def _resource() -> Any:
    from opentelemetry.sdk.resources import Resource

    is_named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    return Resource.create({} if is_named else {"service.name": "nemo-llm-stage"})
