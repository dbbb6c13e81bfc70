"""`python -m nemo_llm_stage` is the command line."""

from nemo_llm_stage.cli import main

if __name__ == "__main__":
    main(prog_name="nemo-llm-stage")
