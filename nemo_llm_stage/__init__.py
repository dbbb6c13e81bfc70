"""The `nemo_llm_stage` package."""
