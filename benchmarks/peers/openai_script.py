"""The plain script that anyone writes first: pandas, the openai SDK, a semaphore, one gather."""

import asyncio
import sys

import pandas as pd
from openai import AsyncOpenAI


async def main(source: str, output: str, base_url: str, in_flight: str) -> None:
    """Ask every row and write the file."""
    client = AsyncOpenAI(base_url=base_url, api_key="none", timeout=600)
    limit = asyncio.Semaphore(int(in_flight))
    frame = pd.read_parquet(source)

    async def ask(text: str) -> str | None:
        async with limit:
            answer = await client.chat.completions.create(
                model="sim",
                messages=[{"role": "user", "content": f"Summarize in one sentence:\n\n{text}"}],
                max_tokens=2048,
                temperature=0,
            )
        return answer.choices[0].message.content

    frame["summary"] = await asyncio.gather(*(ask(text) for text in frame["text"]))
    frame.to_parquet(f"{output}/summaries.parquet")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:5]))
