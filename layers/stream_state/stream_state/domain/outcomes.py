"""Outcomes: what came of asking for one target, as the services pass it on."""

from dataclasses import dataclass
from typing import Any

from stream_state.domain.documents import Answer
from stream_state.domain.merging import Merge
from stream_state.domain.targets import Room, Target
from stream_state.errors import StreamStateError

type Result = dict[str, Any] | StreamStateError


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer for the caller, and the merge of the state record for the delivery, or the errors instead.

    `is_asked` is False if no call was made: the target's turn is still to come. `room` is the whole room that was asked
    about, if the target is one of its users. The target of an outcome with errors can be a room.
    """

    target: Target | Room
    answer: Answer | StreamStateError
    merge: Merge | StreamStateError
    is_asked: bool = True
    room: Room | None = None

    @property
    def error(self) -> StreamStateError | None:
        """The error in place of an answer."""
        return self.answer if isinstance(self.answer, StreamStateError) else None

    def result(self) -> Result:
        """The answer object, or the error."""
        return self.answer.document() if isinstance(self.answer, Answer) else self.answer


def item(target: Target | Room, result: Result) -> dict[str, Any]:
    """A result among several: an error becomes a problem that names its target."""
    return result.problem(**target.as_dict()) if isinstance(result, StreamStateError) else result
