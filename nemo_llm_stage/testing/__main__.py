"""The child process of `SimulatedServerProcess`."""

from nemo_llm_stage.testing.simulator.process import run_child

run_child()
