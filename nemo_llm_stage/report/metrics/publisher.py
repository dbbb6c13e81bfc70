"""
Gives a job's figures to whoever watches it with monitoring: a port, Ray's metrics, OTLP.

Knows when; what is given is `figures`', and how is the other files'.
"""

from __future__ import annotations

import logging
import time
from typing import Self

from nemo_llm_stage.config.job_settings import JobSettings
from nemo_llm_stage.report.metrics import otlp
from nemo_llm_stage.report.metrics.figures import OUTPUT, figures_of, prometheus_word
from nemo_llm_stage.report.metrics.prometheus import PrometheusPort
from nemo_llm_stage.report.progress.view import View
from nemo_llm_stage.text import one_line
from nemo_llm_stage.worker.task import PartitionReport

logger = logging.getLogger(__name__)

RAY_INTERVAL_S = 5.0


class Publisher:
    """
    Publishes how a job stands, from `__enter__` to `__exit__`. None of it costs anything per row.

    Args:
        settings: Whether a port is wanted, and whether the job runs on Ray.
        output: The job's output folder.

    Attributes:
        notices: What a person should know of it.
    """

    def __init__(self, settings: JobSettings, output: str) -> None:
        self.notices: list[str] = []
        self._settings = settings
        self._output = one_line(output.rstrip("/"))
        self._view = View()
        self._port: PrometheusPort | None = None
        self._metrics: otlp.OtlpMetrics | None = None
        self._spans: otlp.OtlpSpans | None = None
        self._is_on_ray = settings.engine == "ray"
        self._ray_at_s = 0.0
        self._ray: object = None
        self._newest_row_at = ""

    def __enter__(self) -> Self:
        """
        Open what is wanted.

        Raises:
            ConfigError: The port cannot be opened.
        """
        if self._settings.metrics_port is not None:
            self._port = PrometheusPort(self._settings.metrics_port, self._output, lambda: self._view)
            self.notices.append(f"metrics: http://localhost:{self._port.port}/metrics")
        problem = otlp.missing_package()
        if problem is not None:
            self.notices.append(problem)
            return self
        if otlp.is_wanted("metrics"):
            self._metrics = otlp.OtlpMetrics(self._output, lambda: self._view)
        if otlp.is_wanted("traces"):
            self._spans = otlp.OtlpSpans(self._output)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Send the last figures, and close."""
        if self._port is not None:
            self._port.close()
        if self._metrics is not None:
            self._metrics.close()
        if self._spans is not None:
            self._spans.close(error)

    def update(self, view: View) -> None:
        """Take note of how the job stands."""
        self._view = view
        if self._spans is not None:
            self._spans.note_view(view)
            for row in view.rows:
                if row["at"] > self._newest_row_at:
                    self._spans.add_request(row)
            self._newest_row_at = max((row["at"] for row in view.rows), default=self._newest_row_at)
        if self._is_on_ray and view.phase != "starting" and time.monotonic() >= self._ray_at_s:
            self._ray_at_s = time.monotonic() + RAY_INTERVAL_S
            self._give_to_ray(view)

    def note_commit(self, report: PartitionReport) -> None:
        """Take note of a partition's file."""
        if self._spans is not None:
            counters = report.counters
            self._spans.add_partition(report.name, counters.num_rows, counters.num_failed, report.seconds)

    def _give_to_ray(self, view: View) -> None:
        from nemo_llm_stage.cluster.metrics import RayMetrics

        try:
            self._ray = metrics = self._ray if isinstance(self._ray, RayMetrics) else RayMetrics()
            own = {prometheus_word(OUTPUT): self._output}
            metrics.set(
                (name, own | dict(labels), value)
                for figure in figures_of(view)
                for name, labels, value in figure.series()
            )
        except Exception:
            self._is_on_ray = False
            logger.debug("Ray takes no metrics", exc_info=True)
