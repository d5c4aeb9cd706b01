"""Where the parts of a stack listen, and the environment that leads to them."""

from dataclasses import dataclass

SIMULATOR = "simulator"
SIMULATOR_MODEL = "sim-1"
SIMULATOR_KEY = "sk-simulator"
SIMULATOR_SECOND_KEY = "sk-simulator-second"
"""Another account there, which knows nothing of the first."""
SIMULATOR_CHAT = "simulator_chat"
"""The same simulator, spoken to in Chat Completions."""
SIMULATOR_MESSAGES = "simulator_messages"
"""The same simulator, spoken to in Anthropic Messages."""
WRONG_KEY = "wrong_key"
"""Another provider: the same simulator, called with a key that it rejects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """The addresses of one stack; all on loopback."""

    database_url: str
    redis_url: str
    """The live events."""
    broker_url: str
    """The same server as *redis_url*, another database."""
    flower_url: str
    simulator_url: str | None
    """None: the stack runs without the simulator."""

    def environment(self) -> dict[str, str]:
        """Return the variables that lead every part of Turnkeeper to this stack."""
        variables = {
            "TURNKEEPER_DATABASE_URL": self.database_url,
            "TURNKEEPER_REDIS_URL": self.redis_url,
            "TURNKEEPER_BROKER_URL": self.broker_url,
            "TURNKEEPER_FLOWER_URL": self.flower_url,
        }
        if self.simulator_url is not None:
            variables |= _simulator(self.simulator_url)
        return variables


def _simulator(url: str) -> dict[str, str]:
    return {
        "TURNKEEPER_SIMULATOR_URL": url,
        "TURNKEEPER_SIMULATOR_KEY": SIMULATOR_KEY,
        "TURNKEEPER_SIMULATOR_WRONG_KEY": "sk-not-the-simulators-key",
        "TURNKEEPER_DEFAULT_PROVIDER": SIMULATOR,
        **_provider(SIMULATOR, "openai-responses", url),
        **_provider(SIMULATOR_CHAT, "openai-chat", url),
        **_provider(SIMULATOR_MESSAGES, "anthropic-messages", url),
        **_provider(WRONG_KEY, "openai-responses", url, "TURNKEEPER_SIMULATOR_WRONG_KEY"),
    }


def _provider(name: str, api: str, url: str, api_key_env: str = "TURNKEEPER_SIMULATOR_KEY") -> dict[str, str]:
    prefix = f"TURNKEEPER_PROVIDERS__{name.upper()}__"
    return {
        f"{prefix}API": api,
        f"{prefix}BASE_URL": f"{url}/v1",
        f"{prefix}API_KEY_ENV": api_key_env,
        f"{prefix}MODEL": SIMULATOR_MODEL,
        # Chains break here whenever somebody wants to see it, and a 429 is meant for one turn.
        f"{prefix}MAX_CHAIN_BREAKS": "1000000",
        f"{prefix}COOLDOWN": "false",
    }
