"""A package of tools, installed into a folder the way that pip would do it."""

from pathlib import Path
from textwrap import dedent

MODULE = """
import asyncio
import json
import sys
import time
from pathlib import Path

from pydantic import BaseModel

from turnkeeper.tools import Tool, ToolContext, ToolFailed

LOG = Path(__file__).with_name("runs.log")


class City(BaseModel):
    city: str


class Wait(BaseModel):
    seconds: float = 0.0
    mark: str = ""


def note(name: str, context: ToolContext, **more: object) -> None:
    with LOG.open("a") as log:
        log.write(json.dumps({"tool": name, "key": context.key, "owner": context.owner, **more}) + "\\n")


async def weather(where: City, context: ToolContext) -> dict[str, object]:
    note("weather", context)
    return {"city": where.city, "degrees": 21}


async def pay(order: Wait, context: ToolContext) -> str:
    note("pay", context, at="start")
    await asyncio.sleep(order.seconds)
    note("pay", context, at="end")
    return f"paid {order.mark}"


async def look(order: Wait, context: ToolContext) -> str:
    note("look", context, at="start")
    await asyncio.sleep(order.seconds)
    note("look", context, at="end")
    return f"seen {order.mark}"


def block(order: Wait, context: ToolContext) -> str:
    note("block", context)
    time.sleep(order.seconds)
    return "unblocked"


async def refuse(_: Wait, __: ToolContext) -> str:
    raise ToolFailed("There is no such order.")


async def crash(_: Wait, __: ToolContext) -> str:
    raise RuntimeError("the secret is 1234")


def leave(_: Wait, __: ToolContext) -> None:
    sys.exit(3)


async def strange(_: Wait, __: ToolContext) -> object:
    return object()


WEATHER = Tool(name="weather", description="Tells the weather.", arguments=City, run=weather, idempotent=True)
PAY = Tool(name="pay", description="Pays.", arguments=Wait, run=pay)
LOOK = Tool(name="look", description="Looks.", arguments=Wait, run=look, idempotent=True)
BLOCK = Tool(name="block", description="Blocks.", arguments=Wait, run=block, timeout_seconds=0.5)
REFUSE = Tool(name="refuse", description="Refuses.", arguments=Wait, run=refuse)
CRASH = Tool(name="crash", description="Crashes.", arguments=Wait, run=crash)
LEAVE = Tool(name="leave", description="Leaves.", arguments=Wait, run=leave)
STRANGE = Tool(name="strange", description="Returns no JSON.", arguments=Wait, run=strange)
"""

TOOLS = ("weather", "pay", "look", "block", "refuse", "crash", "leave", "strange")


def install_tools(folder: Path) -> Path:
    """Install the tools into *folder*, which then belongs into PYTHONPATH; return their log."""
    described = folder / "toolsmith-1.0.dist-info"
    described.mkdir(parents=True)
    (folder / "toolsmith.py").write_text(dedent(MODULE), encoding="utf-8")
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: toolsmith\nVersion: 1.0\n", encoding="utf-8")
    lines = [f"{name} = toolsmith:{name.upper()}" for name in TOOLS]
    (described / "entry_points.txt").write_text("\n".join(["[turnkeeper.tools]", *lines, ""]), encoding="utf-8")
    return folder / "runs.log"
