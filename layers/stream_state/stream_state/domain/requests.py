"""The events of the task, of the sweep and of the board, parsed whole before anything is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from stream_state.domain.parsing import invalid, parse_max_age, parse_object, parse_target_or_room, parse_targets
from stream_state.domain.targets import Room, Target
from stream_state.domain.waits import Wait, WaitCondition

MAX_TARGETS = 100
MAX_SWEEP_TARGETS = 5_000
# Room for the longest place on the board: its kind and three ids. DynamoDB takes twice as much of a key.
MAX_TEXT_BYTES = 500
_TARGET_FIELDS = frozenset({"app_id", "room_id", "user_id"})
# Of `WaitForStream`; a workflow that starts an execution of another adds the last one.
_WAIT_FIELDS = _TARGET_FIELDS | {
    *("medium", "publishing", "interval_seconds", "timeout_seconds"),
    "AWS_STEP_FUNCTIONS_STARTED_BY_EXECUTION_ID",
}


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """One target or several, and what to do with the answers; or one round of a workflow that waits for one user."""

    targets: Sequence[Target | Room]
    is_single: bool
    max_age_seconds: int
    to_queue: bool
    condition: WaitCondition | None
    wait: Wait | None = None

    @classmethod
    def parse(cls, event: object, app_ids: Sequence[str]) -> Self:
        """The request in an event, in its `wait` for a round. Raises `InvalidRequest`."""
        if isinstance(event, Mapping) and "wait" in event:
            fields = parse_object(event, {"wait", "token", "wait_id", "input"}, "the event")
            # The state machine passes its input on, so that a field with a wrong name is not left out silently.
            parse_object(fields.get("input", {}), _WAIT_FIELDS, "the input")
            request = cls._parse(fields["wait"], app_ids)
            return replace(request, wait=Wait.parse(fields, request.condition))
        return cls._parse(event, app_ids)

    @classmethod
    def _parse(cls, event: object, app_ids: Sequence[str]) -> Self:
        is_single = not (isinstance(event, Mapping) and "targets" in event)
        options = {"max_age", "deliver", *(("until",) if is_single else ())}
        request = parse_object(event, (_TARGET_FIELDS if is_single else {"targets"}) | options, "the event")
        if is_single:
            targets = [parse_target_or_room(request, app_ids, more=options)]
        else:
            targets = parse_targets(request["targets"], app_ids, MAX_TARGETS, parse_target_or_room)
        max_age_seconds = parse_max_age(request.get("max_age", 0))
        deliver = request.get("deliver", "return")
        if deliver not in ("return", "queue"):
            raise invalid("deliver", "must be return or queue")
        condition = WaitCondition.parse(request["until"]) if "until" in request else None
        if condition and deliver == "queue":
            raise invalid("until", "cannot be combined with deliver: queue")
        if condition and isinstance(targets[0], Room):
            raise invalid("user_id", "is missing: until is about one user")
        return cls(targets, is_single, max_age_seconds, deliver == "queue", condition)


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """The targets of a sweep, None for the watched ones, and whether it delivers all states or changes only."""

    targets: Sequence[Target | Room] | None
    emits_all: bool

    @classmethod
    def parse(cls, event: object, app_ids: Sequence[str]) -> Self:
        """The request in an event: bare, or the detail of an EventBridge event. Raises `InvalidRequest`."""
        if isinstance(event, Mapping) and {"source", "detail-type", "detail"} <= event.keys():
            event = _detail(event)
        request = parse_object(event, {*_TARGET_FIELDS, "targets", "emit"}, "the event")
        targets = None
        if request.keys() & _TARGET_FIELDS:
            if "targets" in request:
                raise invalid("the event", "must hold either targets or room_id and user_id, not both")
            targets = [parse_target_or_room(request, app_ids, more={"emit"})]
        elif "targets" in request:
            targets = parse_targets(request["targets"], app_ids, MAX_SWEEP_TARGETS, parse_target_or_room)
        emit = request.get("emit", "all" if targets else "changes")
        if emit not in ("all", "changes"):
            raise invalid("emit", "must be all or changes")
        return cls(targets, emit == "all")


@dataclass(frozen=True, slots=True)
class BoardRequest:
    """A page of the board, which begins at the place `after` that the page before gave.

    With `app_id` it shows the room of the name `room` alone, else the rooms whose names hold the text `room`.
    """

    app_id: str = ""
    room: str = ""
    after: str = ""
    theme: str = ""

    @classmethod
    def parse(cls, event: object) -> Self:
        """The request in an event of a CloudWatch custom widget; what was typed counts if no click says otherwise.

        Raises `InvalidRequest`.
        """
        request = parse_object(event, {"app_id", "room", "after", "widgetContext"}, "the event")
        context = _object(request.get("widgetContext", {}), "widgetContext")
        forms = _object(context.get("forms", {}), "widgetContext.forms")
        typed = _object(forms.get("all", {}), "widgetContext.forms.all")
        values = {"room": typed.get("room", ""), **request}
        app_id, room, after = (_short_text(values.get(name, ""), name) for name in ("app_id", "room", "after"))
        if after and not app_id and not after.startswith(("watched#", "known#state#")):
            raise invalid("after", "must be a place that the board has given")
        return cls(app_id, room.strip(), after, context.get("theme", ""))


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise invalid(where, "must be an object")
    return value


def _short_text(value: object, where: str) -> str:
    # The table takes no half of a surrogate pair, which JSON can hold.
    encoded = value.encode(errors="ignore") if isinstance(value, str) else b""
    if encoded.decode() != value or len(encoded) > MAX_TEXT_BYTES:
        raise invalid(where, f"must be Unicode text of at most {MAX_TEXT_BYTES} bytes")
    return value


def _detail(event: Mapping[str, Any]) -> object:
    """The detail of an EventBridge event; a schedule without input sends it empty, as object or as text."""
    detail = event["detail"]
    if isinstance(detail, str) and detail.strip() == "{}":
        detail = {}
    names_targets = isinstance(detail, Mapping) and detail.keys() & {"targets", *_TARGET_FIELDS}
    if not names_targets and not (detail == {} and event["source"] in ("aws.scheduler", "aws.events")):
        raise invalid("the event's detail", "must name targets, or be empty in an event of a schedule")
    return detail
