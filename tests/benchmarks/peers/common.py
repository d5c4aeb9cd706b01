"""What all peers do with a turn, in its blocking and its asynchronous form."""

import os

from openai import AsyncOpenAI, OpenAI

URL = os.environ.get("BENCH_PROVIDER_URL", "")
DATABASE = os.environ.get("TURNKEEPER_DATABASE_URL", "")
BROKER = os.environ.get("TURNKEEPER_REDIS_URL", "").rpartition("/")[0] + "/2"
SLOTS = int(os.environ.get("BENCH_SLOTS", "1"))
QUESTION = "Why do people keep bees?"
STORE = "INSERT INTO peer_answers (turn, said) VALUES (%s, %s)"
TABLE = "CREATE TABLE IF NOT EXISTS peer_answers (turn text PRIMARY KEY, said text NOT NULL)"
OPTIONS = {"base_url": f"{URL}/v1", "api_key": "sk-bench", "timeout": 600, "max_retries": 0}


def ask(client: OpenAI, model: str) -> str:
    """Return what the model says."""
    stream = client.responses.create(model=model, input=QUESTION, stream=True)
    return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


async def ask_async(client: AsyncOpenAI, model: str) -> str:
    """Return what the model says."""
    stream = await client.responses.create(model=model, input=QUESTION, stream=True)
    return "".join([event.delta async for event in stream if event.type == "response.output_text.delta"])
