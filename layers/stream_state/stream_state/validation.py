"""The rules for input: JSON, objects, ids and numbers, each refused with `InvalidTarget` that names its place."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stream_state.errors import InvalidTarget

ID_MAX_LENGTH = 128
MAX_AGE_LIMIT_SECONDS = 3600
_ID = re.compile(r"[A-Za-z0-9@._-]{1,128}")
_ILLEGAL_IN_ID = re.compile(r"[^A-Za-z0-9@._-]")


class JsonError(ValueError):
    """What a text breaks of the rules for JSON, as `is not JSON at line 1, column 5`; nothing of the text is in it."""


def parse_json(text: str | bytes) -> Any:
    """JSON without duplicate names, NaN, infinities or nesting beyond Python's limit; else `JsonError`."""
    try:
        return json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant, parse_float=_finite)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        message = f"is not JSON at line {error.lineno}, column {error.colno}"
        raise JsonError(message) from None
    except (ValueError, RecursionError):
        message = "is not JSON that can be read: it is nested too deeply, a number is too long, or it is not UTF-8"
        raise JsonError(message) from None


def parse_object(value: object, keys: Iterable[str], where: str = "") -> Mapping[str, Any]:
    """The value if it is an object with no other names than `keys`, else `InvalidTarget`."""
    if not isinstance(value, Mapping):
        raise invalid(where or "the request", "must be an object")
    for unknown in value.keys() - set(keys):
        names = ", ".join(sorted(keys)) or "none"
        raise invalid(where or "the request", f"has a member ({shown(unknown)}) that is not one of {names}")
    return value


def parse_id(value: object, where: str) -> str:
    """The id if it keeps the vendor's rules for room and user ids, else `InvalidTarget`."""
    if not isinstance(value, str):
        raise invalid(where, "is missing" if value is None else "must be text")
    if not _ID.fullmatch(value):
        if illegal := _ILLEGAL_IN_ID.search(value):
            raise invalid(where, f"may hold A-Z a-z 0-9 @ . _ - only; position {illegal.start() + 1} holds another")
        raise invalid(where, f"must have 1 to {ID_MAX_LENGTH} characters, not {len(value)}")
    return value


def parse_path_id(value: object, where: str) -> str:
    """As `parse_id`, for an id in a path, where `.` and `..` mean something else."""
    if value in (".", ".."):
        raise invalid(where, "cannot be . or .. in a path; the requests that name targets in their body accept them")
    return parse_id(value, where)


def parse_app_id(value: object, app_ids: Sequence[str], where: str = "app_id") -> str:
    """The AppId if it is one of those configured, else `InvalidTarget`."""
    if not isinstance(value, str) or value not in app_ids:
        raise invalid(where, "is not one of the AppIds that this stack is configured for (RtcAppIds)")
    return value


def parse_whole_number(value: object, where: str, least: int, most: int) -> int:
    """The number if it is whole and from `least` to `most`, else `InvalidTarget`."""
    if type(value) is not int or not least <= value <= most:
        raise invalid(where, f"must be a whole number from {least} to {most}")
    return value


def parse_max_age(value: object) -> int:
    """Whole seconds from 0 to 3600, else `InvalidTarget`."""
    return parse_whole_number(value, "max_age", 0, MAX_AGE_LIMIT_SECONDS)


def invalid(where: str, why: str) -> InvalidTarget:
    """The error for bad input: its place, and the rule that it breaks."""
    return InvalidTarget(f"{where} {why}.")


def shown(value: object) -> str:
    """A name from the input, short and in plain ASCII, fit for a log or an answer."""
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004 (about half a line)


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        message = "names a member twice"
        raise JsonError(message)
    return names


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        message = "holds a number that is too large"
        raise JsonError(message)
    return number


def _refuse_constant(name: str) -> None:
    message = f"holds {name}, which is not JSON"
    raise JsonError(message)
