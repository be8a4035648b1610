"""The answer object, the messages of the results queue, and outcomes: what came of asking for one target."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.targets import PRESENT, Medium, Room, Target
from stream_state.errors import StreamStateError, TargetNotFound

MESSAGE_VERSION = "1"

type Source = Literal["query", "callback", "table"]
type Result = dict[str, Any] | StreamStateError


@dataclass(frozen=True, slots=True)
class Answer:
    """The state in a record, which need not be stored, and where it came from."""

    record: StateRecord
    source: Source = "table"
    rtc_request_id: str | None = None

    @property
    def target(self) -> Target:
        """The target of the record."""
        return self.record.target

    def document(self) -> dict[str, Any]:
        """The answer object, ready for JSON."""
        state, media = self.record.state, self.record.state.media
        return {
            "type": "stream_state",
            **self.target.as_dict(),
            "publishing": state.publishing,
            "present": state.present.value,
            "media": {medium.value: media[medium].value for medium in Medium},
            "media_observed_at": {
                medium.value: iso_time(media[medium].at_ms) if media[medium].value is not None else None
                for medium in Medium
            },
            "observed_at": iso_time(state.observed_at_ms),
            "source": self.source,
            "rtc_request_id": self.rtc_request_id,
        }

    def message(self) -> dict[str, Any]:
        """The answer object, and how it differs from the last message about the record."""
        record = self.record
        values, last = record.state.values, record.delivered or dict.fromkeys([*Medium, PRESENT])
        # A repeated state has an id of its own; a repeated delivery of a change has the id of the first one.
        time = () if record.is_undelivered else (record.state.observed_at_ms,)
        return {
            **self.document(),
            "version": MESSAGE_VERSION,
            "id": record.target.digest(record.sequence, *time),
            "sequence": record.sequence,
            "changed": [name for name, value in values.items() if value != last[name]],
            "previous": {medium.value: last[medium] for medium in Medium} if record.delivered else None,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer for the caller, and the merge of the state record for the delivery, or the errors instead.

    `is_asked` is False if no call was made: the target's turn is still to come. `room` is the whole room that was asked
    about, if the target is one of its users. `before` is the record if it was read before the call. `concerns_others`:
    whether an error of the whole action concerns the other targets too. The target of an outcome with errors can be a
    room.
    """

    target: Target | Room
    answer: Answer | StreamStateError
    merge: Merge | StreamStateError
    is_asked: bool = True
    room: Room | None = None
    before: StateRecord | None = None
    concerns_others: bool = True

    @property
    def error(self) -> StreamStateError | None:
        """The error in place of an answer."""
        return self.answer if isinstance(self.answer, StreamStateError) else None

    @property
    def has_gone(self) -> bool:
        """Whether the user is not in the room."""
        if isinstance(self.merge, Merge):
            return self.merge.after.state.present.value is False
        is_absent = isinstance(self.answer, Answer) and self.answer.record.state.present.value is False
        return is_absent or isinstance(self.answer, TargetNotFound)

    def result(self) -> Result:
        """The answer object, or the error."""
        return self.answer.document() if isinstance(self.answer, Answer) else self.answer


def problem_message(target: Target | Room, error: StreamStateError, at_ms: int) -> dict[str, Any]:
    """The message that says why a target that was asked for by name has no state."""
    return {
        "type": "stream_state_problem",
        **target.as_dict(),
        "problem": error.problem(),
        "version": MESSAGE_VERSION,
        "id": target.digest(error.name, at_ms),
    }


def iso_time(at_ms: int | None) -> str | None:
    """UTC with milliseconds, such as 2026-11-23T03:04:05.678Z."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def observed(answer: Answer | StreamStateError, merge: Merge) -> Answer:
    """The answer; if the vendor does not know the target, an answer from the merged record."""
    return answer if isinstance(answer, Answer) else Answer(merge.after, "query", answer.rtc_request_id)


def item(target: Target | Room, result: Result) -> dict[str, Any]:
    """A result among several: an error becomes a problem that names its target."""
    return result.problem(**target.as_dict()) if isinstance(result, StreamStateError) else result
