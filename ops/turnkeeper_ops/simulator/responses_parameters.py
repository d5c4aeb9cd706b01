"""The parameters of `POST /v1/responses`: which there are, and of which type; not the items."""

from collections.abc import Mapping
from typing import Any

from turnkeeper_ops.simulator.openai_errors import ApiError
from turnkeeper_ops.simulator.openai_parameters import (
    MAX_STRING_CHARS,
    UNKNOWN_MODEL_PREFIX,
    check_metadata,
    check_ranges,
    check_types,
    decode_object,
    missing,
    refuse_not_simulated,
    too_long,
    too_short,
)

_TYPES: Mapping[str, str] = {
    "background": "a boolean",
    "context_management": "an array of objects",
    "conversation": "a string or object",
    "include": "an array of strings",
    "input": "a string or array",
    "instructions": "a string",
    "max_output_tokens": "an integer",
    "max_tool_calls": "an integer",
    "metadata": "an object",
    "model": "a string",
    "parallel_tool_calls": "a boolean",
    "previous_response_id": "a string",
    "prompt": "an object",
    "prompt_cache_key": "a string",
    "prompt_cache_options": "an object",
    "prompt_cache_retention": "a string",
    "reasoning": "an object",
    "safety_identifier": "a string",
    "service_tier": "a string",
    "store": "a boolean",
    "stream": "a boolean",
    "stream_options": "an object",
    "temperature": "a decimal",
    "text": "an object",
    "tool_choice": "a string or object",
    "tools": "an array of objects",
    "top_logprobs": "an integer",
    "top_p": "a decimal",
    "truncation": "a string",
    "user": "a string",
}

_RANGES: Mapping[str, tuple[float, float]] = {
    "max_output_tokens": (16, 10_000_000),
    "temperature": (0, 2),
    "top_logprobs": (0, 20),
    "top_p": (0, 1),
}

NOT_SIMULATED = ("conversation", "prompt")
"""Known to the API, but not to this simulator; refused rather than ignored."""


def decode(body: bytes) -> dict[str, Any]:
    """Decode a request's body and check its parameters, but for the items of the input.

    Raises:
        ApiError: In the API's own words.
    """
    parameters = decode_object(body)
    check_types(parameters, _TYPES)
    _check_model(parameters.get("model"))
    _check_input(parameters.get("input"))
    check_ranges(parameters, _RANGES, _TYPES)
    check_metadata(parameters.get("metadata"))
    _check_tools(parameters.get("tools") or [])
    _check_background(parameters)
    refuse_not_simulated(parameters, NOT_SIMULATED)
    return parameters


def _check_model(model: object) -> None:
    if not model:
        raise missing("model")
    if str(model).startswith(UNKNOWN_MODEL_PREFIX):
        raise ApiError(f"The requested model '{model}' does not exist.", param="model", code="model_not_found")


def _check_input(given: object) -> None:
    match given:
        case None:
            raise ApiError(
                "One of \"input\" or \"previous_response_id\" or 'prompt' or 'conversation_id' must be provided.",
                param="input",
                code="missing_required_parameter",
            )
        case "":
            raise too_short("input", "string")
        case []:
            raise too_short("input", "array")
        case str() if len(given) > MAX_STRING_CHARS:
            raise too_long("input", given)


def _check_background(parameters: Mapping[str, Any]) -> None:
    if parameters.get("background") and parameters.get("store") is False:
        raise ApiError("Background responses require 'store' to be true.", param="background")


def _check_tools(tools: list[dict[str, Any]]) -> None:
    for index, tool in enumerate(tools):
        if "type" not in tool:
            raise missing(f"tools[{index}].type")
        if tool["type"] == "function" and not tool.get("name"):
            raise missing(f"tools[{index}].name")
