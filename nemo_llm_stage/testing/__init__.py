"""Doubles that ship with the package: a simulated inference server, a scripted client and a fake clock."""

from nemo_llm_stage.testing.fake_clock import FakeClock
from nemo_llm_stage.testing.scripted_client import ScriptedAttempt, ScriptedClient
from nemo_llm_stage.testing.simulator.answers import expected_answer
from nemo_llm_stage.testing.simulator.config import ServerConfig
from nemo_llm_stage.testing.simulator.faults import Fault
from nemo_llm_stage.testing.simulator.life import RecordedRequest
from nemo_llm_stage.testing.simulator.process import SimulatedServerProcess
from nemo_llm_stage.testing.simulator.server import SimulatedServer, serve
from nemo_llm_stage.testing.simulator.stats import ServerStats

__all__ = [
    "FakeClock",
    "Fault",
    "RecordedRequest",
    "ScriptedAttempt",
    "ScriptedClient",
    "ServerConfig",
    "ServerStats",
    "SimulatedServer",
    "SimulatedServerProcess",
    "expected_answer",
    "serve",
]
