"""Doubles that ship with the package: a simulated inference server and a scripted client."""

from nemo_llm_stage.testing.answers import expected_answer
from nemo_llm_stage.testing.config import ServerConfig
from nemo_llm_stage.testing.faults import Fault
from nemo_llm_stage.testing.life import RecordedRequest
from nemo_llm_stage.testing.process import SimulatedServerProcess
from nemo_llm_stage.testing.scripted_client import ScriptedAttempt, ScriptedClient
from nemo_llm_stage.testing.server import SimulatedServer, serve
from nemo_llm_stage.testing.stats import ServerStats

__all__ = [
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
