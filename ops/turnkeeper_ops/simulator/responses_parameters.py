"""The parameters of `POST /v1/responses`: which there are, and of which type; not the items."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from turnkeeper_ops.simulator.openai_errors import ApiError

MAX_STRING_CHARS = 10_485_760
"""The API's own limit on one string."""
MAX_METADATA_PAIRS = 16
UNKNOWN_MODEL_PREFIX = "no-such-"
"""Every model name is taken, but for those that begin so."""

Test = Callable[[object], bool]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


_TESTS: Mapping[str, Test] = {
    "a string": lambda value: isinstance(value, str),
    "a boolean": lambda value: isinstance(value, bool),
    "an integer": _is_int,
    "a decimal": _is_number,
    "an object": lambda value: isinstance(value, dict),
    "an array of objects": lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value),
    "an array of strings": lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
    "a string or array": lambda value: isinstance(value, str | list),
    "a string or object": lambda value: isinstance(value, str | dict),
}

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

NOT_SIMULATED = ("background", "conversation", "prompt")
"""Known to the API, but not to this simulator; refused rather than ignored."""


def decode(body: bytes) -> dict[str, Any]:
    """Decode a request's body and check its parameters, but for the items of the input.

    Raises:
        ApiError: In the API's own words.
    """
    parameters = _decode_object(body)
    for name, value in parameters.items():
        _check_type(name, value)
    _check_model(parameters.get("model"))
    _check_input(parameters.get("input"))
    _check_ranges(parameters)
    _check_metadata(parameters.get("metadata"))
    _check_tools(parameters.get("tools") or [])
    for name in NOT_SIMULATED:
        if parameters.get(name):
            raise ApiError(
                f"Unsupported parameter: '{name}' is not simulated.", param=name, code="unsupported_parameter"
            )
    return parameters


def type_name(value: object) -> str:
    """Return what the API calls the type of a JSON value.

    >>> [type_name(value) for value in (None, True, 1, 1.5, "", [], {})]
    ['null', 'a boolean', 'an integer', 'a decimal', 'a string', 'an array', 'an object']
    """
    return _TYPE_NAMES[type(value)]


_TYPE_NAMES: Mapping[type, str] = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a decimal",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def invalid_type(param: str, expected: str, value: object) -> ApiError:
    """Say that *param* has the wrong type."""
    return ApiError(
        f"Invalid type for '{param}': expected {expected}, but got {type_name(value)} instead.",
        param=param,
        code="invalid_type",
    )


def missing(param: str) -> ApiError:
    """Say that *param* is missing."""
    return ApiError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def _decode_object(body: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, dict):
        raise ApiError(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
            "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not "
            "valid JSON. If you have trouble figuring out how to fix this, please contact us through our "
            "help center at help.openai.com.)"
        )
    return decoded


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(name)


def _check_type(name: str, value: object) -> None:
    if name not in _TYPES:
        raise ApiError(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
    if value is not None and not _TESTS[_TYPES[name]](value):
        raise invalid_type(name, _TYPES[name], value)


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
            raise _too_short("string")
        case []:
            raise _too_short("array")
        case str() if len(given) > MAX_STRING_CHARS:
            raise too_long("input", given)


def _too_short(kind: str) -> ApiError:
    article = "an" if kind == "array" else "a"
    return ApiError(
        f"Invalid 'input': empty {kind}. Expected {article} {kind} with minimum length 1, "
        f"but got an empty {kind} instead.",
        param="input",
        code=f"empty_{kind}",
    )


def too_long(param: str, text: str) -> ApiError:
    """Say that a string is longer than the API takes."""
    return ApiError(
        f"Invalid '{param}': string too long. Expected a string with maximum length {MAX_STRING_CHARS}, "
        f"but got a string with length {len(text)} instead.",
        param=param,
        code="string_above_max_length",
    )


def _check_ranges(parameters: Mapping[str, Any]) -> None:
    for name, (lowest, highest) in _RANGES.items():
        value = parameters.get(name)
        if value is None or lowest <= value <= highest:
            continue
        side, bound, relation = ("below_min", lowest, ">=") if value < lowest else ("above_max", highest, "<=")
        kind = _TYPES[name].split()[-1]
        raise ApiError(
            f"Invalid '{name}': {kind} {side.replace('_', ' ')}imum value. "
            f"Expected a value {relation} {bound:g}, but got {value} instead.",
            param=name,
            code=f"{kind}_{side}_value",
        )


def _check_metadata(metadata: Mapping[str, object] | None) -> None:
    if not metadata:
        return
    if len(metadata) > MAX_METADATA_PAIRS:
        raise ApiError(
            f"Invalid 'metadata': too many properties. Expected an object with at most {MAX_METADATA_PAIRS} "
            f"properties, but got an object with {len(metadata)} properties instead.",
            param="metadata",
            code="object_above_max_properties",
        )
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise invalid_type(f"metadata.{key}", "a string", value)


def _check_tools(tools: list[dict[str, Any]]) -> None:
    for index, tool in enumerate(tools):
        if "type" not in tool:
            raise missing(f"tools[{index}].type")
        if tool["type"] == "function" and not tool.get("name"):
            raise missing(f"tools[{index}].name")
