"""What the OpenAI APIs check alike: the types and ranges of parameters, in OpenAI's own words."""

import json
from collections.abc import Callable, Mapping, Sequence
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
    "an array": lambda value: isinstance(value, list),
    "an array of objects": lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value),
    "an array of strings": lambda value: isinstance(value, list) and all(isinstance(v, str) for v in value),
    "a string or array": lambda value: isinstance(value, str | list),
    "a string or object": lambda value: isinstance(value, str | dict),
}


def decode_object(body: bytes) -> dict[str, Any]:
    """Decode a request's body.

    Raises:
        ApiError: It is not a JSON object.
    """
    decoded = parse_object(body)
    if decoded is None:
        raise ApiError(
            "We could not parse the JSON body of your request. (HINT: This likely means you aren't using "
            "your HTTP library correctly. The OpenAI API expects a JSON payload, but what was sent was not "
            "valid JSON. If you have trouble figuring out how to fix this, please contact us through our "
            "help center at help.openai.com.)"
        )
    return decoded


def parse_object(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object in *body*, or None where there is none."""
    try:
        decoded = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def check_types(parameters: Mapping[str, Any], types: Mapping[str, str]) -> None:
    """Refuse what is not in *types*, and what has another type; null is left out.

    Raises:
        ApiError: In OpenAI's own words.
    """
    for name, value in parameters.items():
        if name not in types:
            raise ApiError(f"Unknown parameter: '{name}'.", param=name, code="unknown_parameter")
        if value is not None and not _TESTS[types[name]](value):
            raise invalid_type(name, types[name], value)


def check_ranges(
    parameters: Mapping[str, Any], ranges: Mapping[str, tuple[float, float]], types: Mapping[str, str]
) -> None:
    """Refuse numbers outside of their range, both ends included.

    Raises:
        ApiError: In OpenAI's own words.
    """
    for name, (lowest, highest) in ranges.items():
        value = parameters.get(name)
        if value is None or lowest <= value <= highest:
            continue
        side, bound, relation = ("below_min", lowest, ">=") if value < lowest else ("above_max", highest, "<=")
        kind = types[name].split()[-1]
        raise ApiError(
            f"Invalid '{name}': {kind} {side.replace('_', ' ')}imum value. "
            f"Expected a value {relation} {bound:g}, but got {value} instead.",
            param=name,
            code=f"{kind}_{side}_value",
        )


def check_metadata(metadata: Mapping[str, object] | None) -> None:
    """Refuse metadata that is too much, or no text.

    Raises:
        ApiError: In OpenAI's own words.
    """
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


def refuse_not_simulated(parameters: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse what the API knows and this simulator does not, rather than ignore it.

    Raises:
        ApiError: One of *names* is set.
    """
    for name in names:
        if parameters.get(name):
            raise ApiError(
                f"Unsupported parameter: '{name}' is not simulated.", param=name, code="unsupported_parameter"
            )


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


def invalid_value(param: str, value: object, supported: Sequence[str]) -> ApiError:
    """Say that *param* has none of the values that it may have."""
    names = [f"'{name}'" for name in supported]
    listed = f"{', '.join(names[:-1])}, and {names[-1]}" if len(names) > 2 else " and ".join(names)  # noqa: PLR2004  # grammar
    return ApiError(
        f"Invalid value: '{value}'. Supported values are: {listed}.", param=param, code="invalid_value"
    )


def missing(param: str) -> ApiError:
    """Say that *param* is missing."""
    return ApiError(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")


def too_short(param: str, kind: str) -> ApiError:
    """Say that *param*, a string or an array, is empty."""
    article = "an" if kind == "array" else "a"
    return ApiError(
        f"Invalid '{param}': empty {kind}. Expected {article} {kind} with minimum length 1, "
        f"but got an empty {kind} instead.",
        param=param,
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


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(name)
