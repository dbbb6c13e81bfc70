"""
A job's metrics on a port, for Prometheus to read. Made as they are asked for; between two reads they cost nothing.

The only file that knows prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

from nemo_llm_stage.errors import ConfigError
from nemo_llm_stage.report.metrics.figures import BOUNDS_S, OUTPUT, Family, Figure, figures_of, prometheus_word
from nemo_llm_stage.report.progress.view import View

ADDRESS = "0.0.0.0"  # noqa: S104 - Prometheus is on another machine; there are only counts to read


class PrometheusPort:
    """
    Answers ``GET /metrics`` until `close`.

    Args:
        port: 0 for any that is free.
        output: The job's output folder.
        view: Returns how the job stands; called from another thread.

    Attributes:
        port: That it listens on.

    Raises:
        ConfigError: prometheus_client is not installed, or the port cannot be had.
    """

    def __init__(self, port: int, output: str, view: Callable[[], View]) -> None:
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            raise ConfigError(
                "metrics_port needs prometheus_client: pip install 'nemo-llm-stage[metrics]', or leave it out."
            ) from None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collector(output, view))
        try:
            self._server, self._thread = start_http_server(port, ADDRESS, registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"metrics_port {port} cannot be used: {error}. Choose another, or 0 for any.") from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    def __init__(self, output: str, view: Callable[[], View]) -> None:
        self._output = output
        self._view = view

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        for family, figures in groupby(figures_of(self._view()), key=lambda figure: figure.family):
            yield _metric(family, list(figures), self._output)


def _metric(family: Family, figures: list[Figure], output: str) -> Any:
    from prometheus_client import core

    kinds = {
        "counter": core.CounterMetricFamily,
        "gauge": core.GaugeMetricFamily,
        "summary": core.SummaryMetricFamily,
        "histogram": core.HistogramMetricFamily,
    }
    labels = [prometheus_word(OUTPUT), *map(prometheus_word, family.labels)]
    metric = kinds[family.kind](family.prometheus_name, family.help, labels=labels)
    for figure in figures:
        metric.add_metric([output, *figure.labels], **_values(figure))
    return metric


def _values(figure: Figure) -> dict[str, Any]:
    if figure.family.kind == "summary":
        return {"count_value": figure.num_values, "sum_value": figure.value}
    if figure.family.kind != "histogram":
        return {"value": figure.value}
    num, buckets = 0, []
    for bound, count in zip((*map("{:g}".format, BOUNDS_S), "+Inf"), figure.counts, strict=True):
        num += count
        buckets.append((bound, num))
    return {"buckets": buckets, "sum_value": figure.value}
