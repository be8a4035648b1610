"""Wait conditions: a medium on or off, before a deadline."""

from dataclasses import dataclass
from datetime import datetime
from typing import Self

from stream_state.domain.parsing import invalid, parse_object, parse_whole_number
from stream_state.domain.states import State
from stream_state.domain.targets import Medium
from stream_state.errors import StreamStateTimeout

TIMEOUT_LIMIT_SECONDS = 2_592_000
INTERVAL_LIMIT_SECONDS = 3600
# An execution of Step Functions has 25,000 events at most, and an interval takes up to 12 of them.
MAX_INTERVALS = 2000
_FIELDS = frozenset({"medium", "publishing", "started_at", "timeout_seconds", "interval_seconds"})


@dataclass(frozen=True, slots=True)
class WaitCondition:
    """A medium (None: any) on or off, before the deadline in seconds since 1970."""

    medium: Medium | None
    publishing: bool
    deadline: float

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
        return cls(Medium(medium) if medium else None, publishing, started.timestamp() + seconds)

    def holds(self, state: State) -> bool:
        """Whether the state fulfils the condition; an unknown value does not."""
        value = state.values[self.medium] if self.medium else state.publishing
        return value is self.publishing

    def timeout(self) -> StreamStateTimeout:
        """The error of a wait that is past its deadline."""
        condition = f"{self.medium or 'any medium'} {'on' if self.publishing else 'off'}"
        return StreamStateTimeout(f"The time to wait is past, and the state did not come to be: {condition}.")
