"""The rules for input: JSON, objects, ids and numbers; `InvalidRequest` names the place and the rule."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from stream_state.domain.targets import Room, Target
from stream_state.errors import InvalidRequest

ID_MAX_LENGTH = 128
MAX_AGE_LIMIT_SECONDS = 3600
_SHOWN_CHARACTERS = 40
_ID = re.compile(r"[A-Za-z0-9@._-]{1,128}")
_ILLEGAL_IN_ID = re.compile(r"[^A-Za-z0-9@._-]")


class JsonError(ValueError):
    """The rule of JSON that a text breaks, such as `is not JSON at line 1, column 5`; it shows nothing of the text."""


def parse_json(text: str | bytes) -> Any:
    """JSON without duplicate names, NaN, infinities or nesting beyond Python's limit; else `JsonError`."""
    if text[:1] == "\ufeff" or text[:3] == b"\xef\xbb\xbf":
        raise JsonError("begins with a byte order mark: send UTF-8 without it")
    try:
        return json.loads(text, object_pairs_hook=_unique_names, parse_constant=_refuse_constant, parse_float=_finite)
    except JsonError:
        raise
    except json.JSONDecodeError as error:
        raise JsonError(f"is not JSON at line {error.lineno}, column {error.colno}") from None
    except (ValueError, RecursionError):
        raise JsonError(
            "is not JSON that can be read: it is nested too deeply, a number is too long, or it is not UTF-8"
        ) from None


def parse_object(value: object, names: Iterable[str], where: str = "") -> Mapping[str, Any]:
    """The value if it is an object with no other fields than `names`, else `InvalidRequest`."""
    if not isinstance(value, Mapping):
        raise invalid(where or "the request", "must be an object")
    if unknown := sorted(value.keys() - set(names), key=str):
        allowed = ", ".join(sorted(names)) or "none"
        raise invalid(where or "the request", f"has a field ({shown(unknown[0])}) that is not one of {allowed}")
    return value


def parse_id(value: object, where: str) -> str:
    """The id if it keeps the vendor's rules for room and user ids, else `InvalidRequest`."""
    if not isinstance(value, str):
        raise invalid(where, "is missing" if value is None else "must be text")
    if not _ID.fullmatch(value):
        if illegal := _ILLEGAL_IN_ID.search(value):
            raise invalid(where, f"may hold A-Z a-z 0-9 @ . _ - only; position {illegal.start() + 1} holds another")
        raise invalid(where, f"must have 1 to {ID_MAX_LENGTH} characters, not {len(value)}")
    return value


def is_id(value: object) -> bool:
    """Whether a value keeps the vendor's rules for room and user ids."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def parse_path_id(value: object, where: str) -> str:
    """As `parse_id`, for an id in a path, where `.` and `..` have another meaning."""
    if value in (".", ".."):
        raise invalid(where, "cannot be . or .. in a path; the requests that name targets in their body accept them")
    return parse_id(value, where)


def parse_app_id(value: object, app_ids: Sequence[str], where: str = "app_id") -> str:
    """The AppId if it is one of those configured, else `InvalidRequest`."""
    if not isinstance(value, str) or value not in app_ids:
        raise invalid(where, "is not one of the AppIds that this stack is configured for (RtcAppIds)")
    return value


def parse_whole_number(value: object, where: str, least: int, most: int) -> int:
    """The number if it is whole, also written as 10.0, and from `least` to `most`; else `InvalidRequest`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or not least <= value <= most:
        raise invalid(where, f"must be a whole number from {least} to {most}")
    return value


def parse_max_age(value: object) -> int:
    """Whole seconds from 0 to 3600, else `InvalidRequest`."""
    return parse_whole_number(value, "max_age", 0, MAX_AGE_LIMIT_SECONDS)


def parse_target(value: object, app_ids: Sequence[str], where: str = "") -> Target:
    """The user that an object names; `where` is its place in the input.

    Without `app_id` the first of `app_ids` is meant. Raises `InvalidRequest`.
    """
    target = parse_target_or_room(value, app_ids, where)
    if isinstance(target, Room):
        raise invalid(f"{where}.user_id" if where else "user_id", "is missing")
    return target


def parse_target_or_room(
    value: object, app_ids: Sequence[str], where: str = "", more: Iterable[str] = ()
) -> Target | Room:
    """As `parse_target`; an object without `user_id` names a whole room. `more` names its other allowed fields."""
    fields = parse_object(value, {"app_id", "room_id", "user_id", *more}, where)
    prefix = f"{where}." if where else ""
    app_id = parse_app_id(fields.get("app_id", app_ids[0]), app_ids, f"{prefix}app_id")
    room_id = parse_id(fields.get("room_id"), f"{prefix}room_id")
    if "user_id" not in fields:
        return Room(app_id, room_id)
    return Target(app_id, room_id, parse_id(fields["user_id"], f"{prefix}user_id"))


def parse_targets[T](
    value: object, app_ids: Sequence[str], most: int, parse: Callable[[object, Sequence[str], str], T]
) -> list[T]:
    """The targets of a list with 1 to `most` entries; `InvalidRequest` names the index of the first bad one."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise invalid("targets", f"must be a list of 1 to {most} objects with room_id and user_id")
    return [parse(entry, app_ids, f"targets[{index}]") for index, entry in enumerate(value)]


def invalid(where: str, why: str) -> InvalidRequest:
    """The error for bad input: its place, and the rule that it breaks."""
    return InvalidRequest(f"{where} {why}.")


def shown(value: object) -> str:
    """A name from the input, short and in plain ASCII, fit for a log or an answer."""
    text = ascii(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = dict(pairs)
    if len(names) != len(pairs):
        raise JsonError("names a field twice")
    return names


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise JsonError("holds a number that is too large")
    return number


def _refuse_constant(name: str) -> None:
    raise JsonError(f"holds {name}, which is not JSON")
