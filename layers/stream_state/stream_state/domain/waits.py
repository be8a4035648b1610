"""What workflows wait for: a medium on or off, before a deadline."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from stream_state.domain.parsing import invalid, parse_object, parse_whole_number
from stream_state.domain.states import State
from stream_state.domain.targets import Medium
from stream_state.errors import StreamStateTimeout

TIMEOUT_LIMIT_SECONDS = 2_592_000
INTERVAL_LIMIT_SECONDS = 3600
# An execution of Step Functions has 25,000 events at most, and an interval takes up to 12 of them.
MAX_INTERVALS = 2000
# As Step Functions gives them: the id of an execution is an ARN, whose name may be in any script. DynamoDB takes so
# many bytes of a key.
MAX_TOKEN_BYTES, MAX_ID_BYTES = 2048, 1024
_FIELDS = frozenset({"medium", "publishing", "started_at", "timeout_seconds", "interval_seconds"})


@dataclass(frozen=True, slots=True)
class WaitCondition:
    """A medium (None: any) on or off; asked about once every interval, until the deadline.

    `deadline` and `started_at`, when the wait began, in seconds since 1970.
    """

    medium: Medium | None
    publishing: bool
    deadline: float
    interval_seconds: int | None = None
    started_at: float = 0

    @classmethod
    def parse(cls, value: object) -> Self:
        """The condition in an event's `until`. Raises `InvalidRequest`, also if the time holds too many intervals."""
        fields = parse_object(value, _FIELDS, "until")
        medium, publishing = fields.get("medium"), fields.get("publishing")
        if "medium" in fields and medium not in tuple(Medium):
            raise invalid("until.medium", f"must be one of {', '.join(Medium)}")
        if not isinstance(publishing, bool):
            raise invalid("until.publishing", "must be true or false")
        seconds = parse_whole_number(fields.get("timeout_seconds"), "until.timeout_seconds", 1, TIMEOUT_LIMIT_SECONDS)
        interval = None
        if "interval_seconds" in fields:
            name = "until.interval_seconds"
            interval = parse_whole_number(fields["interval_seconds"], name, 1, INTERVAL_LIMIT_SECONDS)
            if seconds > interval * MAX_INTERVALS:
                raise invalid(name, f"must be longer: timeout_seconds holds more than {MAX_INTERVALS} of it")
        try:
            started = datetime.fromisoformat(fields.get("started_at"))  # type: ignore[arg-type]  # TypeError is caught
        except (TypeError, ValueError):
            started = None
        if started is None or started.tzinfo is None:
            raise invalid("until.started_at", "must be an ISO 8601 time with its zone, as Step Functions gives it")
        started_at = started.timestamp()
        return cls(Medium(medium) if medium else None, publishing, started_at + seconds, interval, started_at)

    def holds(self, state: State, oldest_ms: float = -math.inf) -> bool:
        """Whether the state fulfils the condition by what was observed at that time or later; unknown does not."""
        value = state.values[self.medium] if self.medium else state.publishing
        times = [value.at_ms or 0 for medium, value in state.media.items() if self.medium in (None, medium)]
        # One medium that is on is enough, but all four must be off.
        on = [value.at_ms or 0 for value in state.media.values() if value.value]
        observed_at_ms = max(on, default=0) if self.publishing and self.medium is None else min(times)
        if not self.publishing and state.present.value is False:
            # A user who has left publishes nothing.
            observed_at_ms = max(observed_at_ms, state.present.at_ms or 0)
        return value is self.publishing and observed_at_ms >= oldest_ms

    def timeout(self) -> StreamStateTimeout:
        """The error of a wait that is past its deadline."""
        condition = f"{self.medium or 'any medium'} {'on' if self.publishing else 'off'}"
        return StreamStateTimeout(f"The time to wait is past, and the state did not come to be: {condition}.")


@dataclass(frozen=True, slots=True)
class Wait:
    """A workflow that waits for a condition with a task token; `id` is the same in all rounds of a wait.

    Whoever has the token can answer the workflow. What was observed before `since_ms` (since 1970) does not count.
    """

    id: str
    token: str = field(repr=False)
    condition: WaitCondition
    since_ms: int = 0

    @classmethod
    def parse(cls, fields: Mapping[str, Any], condition: WaitCondition | None) -> Self:
        """The wait in the `token` and `wait_id` of an event. Raises `InvalidRequest`."""
        if condition is None or condition.interval_seconds is None:
            raise invalid("wait", "must hold until with interval_seconds, for one target")
        token, wait_id = _text(fields, "token", MAX_TOKEN_BYTES), _text(fields, "wait_id", MAX_ID_BYTES)
        return cls(wait_id, token, condition)


def _text(fields: Mapping[str, Any], name: str, most: int) -> str:
    value = fields.get(name)
    # JSON can hold lone surrogates, which UTF-8 cannot.
    size = len(value.encode(errors="replace")) if isinstance(value, str) and value.isprintable() else 0
    if not 1 <= size <= most:
        raise invalid(name, f"must be a text of 1 to {most} bytes, as Step Functions gives it")
    return str(value)
