"""
The simulated inference server without its socket: routes, and the life of a request.

Lives on one event loop and is only touched there. Knows how requests come (`Exchange`) and who serves them (`Engine`);
nothing of threads or processes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

import orjson

from nemo_llm_stage.testing.simulator.batching import BatchingEngine
from nemo_llm_stage.testing.simulator.config import ServerConfig
from nemo_llm_stage.testing.simulator.faults import Fault
from nemo_llm_stage.testing.simulator.generation import Answerer
from nemo_llm_stage.testing.simulator.life import RecordedRequest, RequestLife
from nemo_llm_stage.testing.simulator.protocol import Connection, Exchange
from nemo_llm_stage.testing.simulator.rate_limit import RateLimit
from nemo_llm_stage.testing.simulator.replies import Refusal, metrics_body, models_body, wrong_key_body
from nemo_llm_stage.testing.simulator.slots import Engine, SlotEngine
from nemo_llm_stage.testing.simulator.stats import ServerStats, StatsRecorder

_OK, _BAD_REQUEST, _UNAUTHORIZED, _NOT_FOUND, _NOT_ALLOWED, _UNAVAILABLE = 200, 400, 401, 404, 405, 503
_TOO_MANY = 429
_GENERATE = frozenset({"/v1/chat/completions", "/v1/completions"})
_CONTROLS = frozenset({"/stats", "/reset", "/faults"})  # always answered, also while the server starts


class Service:
    """
    Answers exchanges.

    Args:
        config: How the server behaves.
        faults: What goes wrong.
        answer: Text for a request's body, instead of the usual answers.
        on_exit: What the "exit" fault does; gets the fault's seconds.
    """

    def __init__(
        self,
        config: ServerConfig,
        faults: Sequence[Fault] = (),
        *,
        answer: Answerer | None = None,
        on_exit: Callable[[float], None],
    ) -> None:
        self.config = config
        self.answer = answer
        self.on_exit = on_exit
        self.recorded: deque[RecordedRequest] = deque(maxlen=config.max_recorded)
        self.connections: set[Connection] = set()
        self.recorder = StatsRecorder(config.max_num_seqs)
        self.engine: Engine = _make_engine(config, self.recorder)
        rate = config.requests_per_minute
        self._rate_limit = None if rate is None else RateLimit(rate, config.speedup)
        self._ready_at_s = time.monotonic() + config.startup_delay_s
        self._created = int(time.time())
        self._number = 0
        self.set_faults(faults)

    def set_faults(self, faults: Sequence[Fault]) -> None:
        """Switch to these faults; their clock starts now."""
        self.faults = tuple(faults)
        self.faults_set_s = time.monotonic()

    def stats(self) -> ServerStats:
        """Return what was seen up to now."""
        return self.recorder.snapshot(waiting=self.engine.num_waiting, kv_cache_usage=self.engine.kv_cache_usage)

    def reset(self) -> None:
        """Forget what was seen."""
        self.recorded.clear()
        self.recorder.reset()

    def connection_made(self, connection: Connection) -> None:
        """Count a new connection."""
        self.connections.add(connection)
        self.recorder.seen.num_connections += 1
        self.recorder.seen.open_connections += 1

    def connection_lost(self, connection: Connection) -> None:
        """Count a connection that ended."""
        self.connections.discard(connection)
        self.recorder.seen.open_connections -= 1

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange` now or later."""
        if exchange.path in _GENERATE and exchange.method == "POST":
            RequestLife(self, exchange).begin()
            return
        try:
            self.check_access(exchange)
            status, body, content_type = self._look_up(exchange)
        except Refusal as refusal:
            status, body, content_type = refusal.status, refusal.body, "application/json"
        exchange.reply(status, body, content_type=content_type)

    def _look_up(self, exchange: Exchange) -> tuple[int, bytes, str]:
        routes: dict[str, dict[str, Callable[[Exchange], bytes]]] = {
            "/v1/models": {"GET": self._models},
            "/health": {"GET": lambda _: b""},
            "/metrics": {"GET": self._metrics},
            "/stats": {"GET": lambda _: orjson.dumps(self.stats(), option=orjson.OPT_NON_STR_KEYS)},
            "/reset": {"POST": self._reset},
            "/faults": {"POST": self._post_faults, "GET": lambda _: orjson.dumps(self.faults)},
            **{path: {} for path in _GENERATE},
        }
        methods = routes.get(exchange.path)
        if methods is None:
            raise Refusal(_NOT_FOUND, "Not Found")
        if exchange.method not in methods:
            raise Refusal(_NOT_ALLOWED, "Method Not Allowed")
        content_type = "text/plain; version=0.0.4; charset=utf-8" if exchange.path == "/metrics" else "application/json"
        return _OK, methods[exchange.method](exchange), content_type

    def check_rate(self, exchange: Exchange, now_s: float) -> None:
        """
        Let a generation request pass.

        Raises:
            Refusal: There are too many a minute.
        """
        limit = self._rate_limit
        if limit is None:
            return
        if not limit.takes(now_s):
            headers = f"retry-after: {limit.retry_after_s}\r\n"
            raise Refusal(_TOO_MANY, "Rate limit exceeded: too many requests per minute.", headers=headers)
        if self.config.rate_limit_headers:
            exchange.rate_headers = limit.headers()

    def _models(self, _: Exchange) -> bytes:
        return models_body(self.config.models, self.config.max_model_len, self._created)

    def _metrics(self, _: Exchange) -> bytes:
        if not self.config.has_metrics:
            raise Refusal(_NOT_FOUND, "Not Found")
        return metrics_body(self.stats(), self.config)

    def _reset(self, _: Exchange) -> bytes:
        self.reset()
        return b"{}"

    def _post_faults(self, exchange: Exchange) -> bytes:
        try:
            self.set_faults([Fault.of(fault) for fault in orjson.loads(exchange.body or b"[]")])
        except (ValueError, TypeError) as error:
            raise Refusal(_BAD_REQUEST, f"No faults in this body: {error}") from error
        return b"{}"

    def next_number(self) -> int:
        """Return the number of the next answer, from 1."""
        self._number += 1
        return self._number

    def check_access(self, exchange: Exchange) -> None:
        """
        Let `exchange` pass.

        Raises:
            Refusal: The server is not up yet, or the key is wrong.
        """
        if time.monotonic() < self._ready_at_s and exchange.path not in _CONTROLS:
            raise Refusal(_UNAVAILABLE, "The server is starting.")
        key = self.config.api_key
        if key and exchange.path.startswith("/v1/") and exchange.headers.get("authorization") != f"Bearer {key}":
            raise Refusal(_UNAUTHORIZED, "", body=wrong_key_body())


def _make_engine(config: ServerConfig, stats: StatsRecorder) -> Engine:
    if config.scheduler == "batching":
        return BatchingEngine(config, stats)
    return SlotEngine(config.max_num_seqs, config.max_queue, stats)
