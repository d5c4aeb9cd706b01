"""The parameters of `POST /v1/chat/completions`: which there are, and of which type; not the messages."""

from collections.abc import Mapping
from typing import Any

from turnkeeper_ops.simulator.openai_errors import ApiError
from turnkeeper_ops.simulator.openai_parameters import (
    UNKNOWN_MODEL_PREFIX,
    check_metadata,
    check_ranges,
    check_types,
    decode_object,
    missing,
    refuse_not_simulated,
    too_short,
)

_TYPES: Mapping[str, str] = {
    "audio": "an object",
    "frequency_penalty": "a decimal",
    "function_call": "a string or object",
    "functions": "an array of objects",
    "logit_bias": "an object",
    "logprobs": "a boolean",
    "max_completion_tokens": "an integer",
    "max_tokens": "an integer",
    "messages": "an array of objects",
    "metadata": "an object",
    "modalities": "an array of strings",
    "model": "a string",
    "n": "an integer",
    "parallel_tool_calls": "a boolean",
    "prediction": "an object",
    "presence_penalty": "a decimal",
    "prompt_cache_key": "a string",
    "prompt_cache_options": "an object",
    "prompt_cache_retention": "a string",
    "reasoning_effort": "a string",
    "response_format": "an object",
    "safety_identifier": "a string",
    "seed": "an integer",
    "service_tier": "a string",
    "stop": "a string or array",
    "store": "a boolean",
    "stream": "a boolean",
    "stream_options": "an object",
    "temperature": "a decimal",
    "tool_choice": "a string or object",
    "tools": "an array of objects",
    "top_logprobs": "an integer",
    "top_p": "a decimal",
    "user": "a string",
    "verbosity": "a string",
    "web_search_options": "an object",
}

_RANGES: Mapping[str, tuple[float, float]] = {
    "frequency_penalty": (-2, 2),
    "max_completion_tokens": (1, 10_000_000),
    "max_tokens": (1, 10_000_000),
    "n": (1, 128),
    "presence_penalty": (-2, 2),
    "temperature": (0, 2),
    "top_logprobs": (0, 20),
    "top_p": (0, 1),
}

NOT_SIMULATED = ("audio", "function_call", "functions")
"""Known to the API, but not to this simulator; refused rather than ignored."""


def decode(body: bytes) -> dict[str, Any]:
    """Decode a request's body and check its parameters, but for what the messages hold.

    Raises:
        ApiError: In the API's own words.
    """
    parameters = decode_object(body)
    check_types(parameters, _TYPES)
    _check_model(parameters.get("model"))
    _check_messages(parameters.get("messages"))
    check_ranges(parameters, _RANGES, _TYPES)
    check_metadata(parameters.get("metadata"))
    _check_tools(parameters)
    _check_stream_options(parameters)
    refuse_not_simulated(parameters, NOT_SIMULATED)
    if parameters.get("n") not in {None, 1}:
        refuse_not_simulated(parameters, ["n"])
    return parameters


def _check_model(model: object) -> None:
    if not model:
        raise missing("model")
    if str(model).startswith(UNKNOWN_MODEL_PREFIX):
        raise ApiError(
            f"The model `{model}` does not exist or you do not have access to it.",
            code="model_not_found",
            status=404,
        )


def _check_messages(messages: object) -> None:
    if messages is None:
        raise missing("messages")
    if not messages:
        raise too_short("messages", "array")


def _check_tools(parameters: Mapping[str, Any]) -> None:
    tools = parameters.get("tools")
    if tools is None:
        _check_no_tools(parameters)
        return
    if not tools:
        raise too_short("tools", "array")
    for index, tool in enumerate(tools):
        if "type" not in tool:
            raise missing(f"tools[{index}].type")
        function = tool.get("function")
        if tool["type"] == "function" and not (isinstance(function, dict) and function.get("name")):
            # The API's own two steps: first the object, then its name.
            raise missing(f"tools[{index}].function" + (".name" if isinstance(function, dict) else ""))


def _check_no_tools(parameters: Mapping[str, Any]) -> None:
    for name in ("tool_choice", "parallel_tool_calls"):
        # A tuple, for an object cannot be looked up in a set.
        if parameters.get(name) not in (None, "none"):
            raise ApiError(
                f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified.", param=name
            )


def _check_stream_options(parameters: Mapping[str, Any]) -> None:
    if parameters.get("stream_options") is not None and not parameters.get("stream"):
        raise ApiError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
