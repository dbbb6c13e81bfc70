"""
The program that `bench_stage` measures: the rows of one Parquet file to another, one of several ways.

Runs in a process of its own and prints when what was reached, and what CPU time it had used by then, as JSON.
Nothing is imported before the clock is read but what reads it.
"""

import json
import resource
import sys
import time

MARKS: dict[str, tuple[float, float]] = {}


def mark(name: str) -> None:
    """Note the monotonic time and this process's CPU seconds so far."""
    MARKS[name] = (time.monotonic(), time.process_time())


def main(way: str, source: str, output: str, base_url: str, text: str) -> None:
    """Run and print the marks: begun, imported, ready (Ray is up), done."""
    settings = json.loads(text)
    mark("begun")
    from nemo_llm_stage import AsyncHTTPClient, LLMStage, run_job

    mark("imported")
    stage = LLMStage(
        client=AsyncHTTPClient(base_url, max_concurrent_requests=settings["limit"]),
        model="sim",
        prompt="Summarize in one sentence:\n\n{{ text }}",
        output_column="summary",
        has_meta=True,
    )
    if way in {"ray", "map"}:
        from nemo_llm_stage.cluster.connect import connect, quiet_ray_data

        connect()
        quiet_ray_data()
    mark("ready")
    if way == "process":
        import pyarrow.parquet as pq

        pq.write_table(stage.process(pq.read_table(source)), output + ".parquet")
        stage.close()
    elif way == "map":
        import ray.data

        dataset = ray.data.read_parquet(source)
        stage.map(dataset, num_actors=settings["actors"], num_cpus_per_actor=0.5).write_parquet(output)
    else:
        run_job(
            stage=stage,
            input=source,
            output=output,
            engine="ray" if way == "ray" else "local",
            actors=settings["actors"],
            num_cpus_per_actor=0.1,
            rows_per_partition=settings["rows_per_partition"],
            order=settings["order"],
            progress=False,
        )
    mark("done")
    peak_rss_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"marks": MARKS, "peak_rss_mib": peak_rss_mib}))


if __name__ == "__main__":
    main(*sys.argv[1:6])
