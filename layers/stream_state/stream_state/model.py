"""Targets, what is known of them, and the answers and messages that tell it. No input or output."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from stream_state.errors import StreamStateError, StreamStateTimeout
from stream_state.validation import invalid, parse_app_id, parse_id, parse_object, parse_whole_number

MESSAGE_VERSION = "1"
UNTIL_LIMIT_SECONDS = 31_536_000
INTERVAL_LIMIT_SECONDS = 3600
# An execution of Step Functions has 25,000 events at most, of which a round takes up to 12.
MAX_ROUNDS = 2000


class Medium(StrEnum):
    """One of the four streams that a user can publish."""

    AUDIO = "audio"
    VIDEO = "video"
    SCREEN_AUDIO = "screen_audio"
    SCREEN_VIDEO = "screen_video"


# By the names that the vendor has for them, such as ScreenAudio.
MEDIA_TYPES = {medium.title().replace("_", ""): medium for medium in Medium}
PRESENT = "present"
FOUND = "found"
LEFT = "left"


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A user in a room of an app: what is asked about."""

    app_id: str
    room_id: str
    user_id: str

    @classmethod
    def parse(cls, value: object, app_ids: Sequence[str], where: str = "", more_keys: Iterable[str] = ()) -> Self:
        """The target that an object names; `where` is its place in the input, `more_keys` what else it may hold.

        Without `app_id` the first of `app_ids` is meant. Raises `InvalidTarget`.
        """
        fields = parse_object(value, {"app_id", "room_id", "user_id", *more_keys}, where)
        prefix = f"{where}." if where else ""
        app_id = parse_app_id(fields.get("app_id", app_ids[0]), app_ids, f"{prefix}app_id")
        room_id, user_id = (parse_id(fields.get(name), prefix + name) for name in ("room_id", "user_id"))
        return cls(app_id, room_id, user_id)

    def as_dict(self) -> dict[str, str]:
        """The three ids by name."""
        return {"app_id": self.app_id, "room_id": self.room_id, "user_id": self.user_id}

    def digest(self, *more: object) -> str:
        """SHA-256 hex of the ids and of `more`; no id holds the line feed that joins them."""
        text = "\n".join((self.app_id, self.room_id, self.user_id, *map(str, more)))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Fact:
    """A value and the time it is true of, in milliseconds since 1970; None: not known."""

    value: bool | None
    at_ms: int

    def precedence(self) -> tuple[int, int]:
        """Sorts facts of one thing: the later wins; at equal times true over unknown over false."""
        return self.at_ms, {True: 2, None: 1, False: 0}[self.value]


@dataclass(frozen=True, slots=True)
class StreamState:
    """What is known of a target: facts of its media, and of `present`, `left` and `found`.

    Events tell `present` and `left`; what is not newer than `left` is off. Queries tell `found`: one that finds the
    user does not prove presence, but ends what an earlier one, which did not, had proved.
    """

    target: Target
    facts: Mapping[str, Fact]
    source: str
    rtc_request_id: str | None = None

    @classmethod
    def not_found(cls, target: Target, at_ms: int, rtc_request_id: str | None) -> Self:
        """What it tells that the vendor does not know a target: not present, and nothing of its media."""
        facts = {medium.value: Fact(None, at_ms) for medium in Medium}
        return cls(target, {**facts, FOUND: Fact(value=False, at_ms=at_ms)}, "query", rtc_request_id)

    @property
    def values(self) -> dict[str, bool | None]:
        """Value of the four media and of `present`, None where not known."""
        media = {medium.value: self._value(medium) for medium in Medium}
        presence = self._presence()
        return {**media, PRESENT: True if any(media.values()) else presence.value if presence else None}

    @property
    def publishing(self) -> bool | None:
        """True if any medium is on, False if all four are known to be off, else None."""
        media = [self._value(medium) for medium in Medium]
        return True if any(media) else None if None in media else False

    @property
    def observed_at_ms(self) -> int | None:
        """Oldest time of the known media; of `present` if no medium is known; None if nothing is."""
        known = [fact.at_ms for fact in map(self._medium, Medium) if fact and fact.value is not None]
        presence = self._presence()
        if not known and presence and presence.value is not None:
            known = [presence.at_ms]
        return min(known, default=None)

    def is_whole_since(self, oldest_ms: float) -> bool:
        """Whether all four media are known, each as of that time or later."""
        return None not in map(self._value, Medium) and (self.observed_at_ms or 0) >= oldest_ms

    def answer(self) -> dict[str, Any]:
        """The answer object, ready for JSON."""
        values = self.values
        present = values.pop(PRESENT)
        known = {medium.value: self._medium(medium) for medium in Medium}
        observed = {name: fact.at_ms if fact and fact.value is not None else None for name, fact in known.items()}
        return {
            "type": "stream_state",
            **self.target.as_dict(),
            "publishing": self.publishing,
            "present": present,
            "media": values,
            "media_observed_at": {medium: iso_time(at_ms) for medium, at_ms in observed.items()},
            "observed_at": iso_time(self.observed_at_ms),
            "source": self.source,
            "rtc_request_id": self.rtc_request_id,
        }

    def _presence(self) -> Fact | None:
        told, found = self._unless_left(self.facts.get(PRESENT)), self.facts.get(FOUND)
        return found if found and found.value is False and (told is None or found.at_ms > told.at_ms) else told

    def _medium(self, medium: Medium) -> Fact | None:
        return self._unless_left(self.facts.get(medium))

    def _unless_left(self, fact: Fact | None) -> Fact | None:
        left = self.facts.get(LEFT)
        return left if left and (fact is None or left.at_ms >= fact.at_ms) else fact

    def _value(self, medium: Medium) -> bool | None:
        fact = self._medium(medium)
        return fact.value if fact else None


@dataclass(frozen=True, slots=True)
class Until:
    """What a workflow waits for: a medium (None: any) on or off, before `ends_at` in seconds since 1970."""

    medium: Medium | None
    publishing: bool
    ends_at: float

    @classmethod
    def parse(cls, value: object) -> Self:
        """The condition in an event's `until`, with the interval at which it is asked if that is given.

        Raises `InvalidTarget`, also if the time holds too many intervals.
        """
        names = {"medium", "publishing", "started_at", "timeout_seconds", "interval_seconds"}
        fields = parse_object(value, names, "until")
        medium, publishing = fields.get("medium"), fields.get("publishing")
        if "medium" in fields and medium not in tuple(Medium):
            raise invalid("until.medium", f"must be one of {', '.join(Medium)}")
        if not isinstance(publishing, bool):
            raise invalid("until.publishing", "must be true or false")
        seconds = parse_whole_number(fields.get("timeout_seconds"), "until.timeout_seconds", 1, UNTIL_LIMIT_SECONDS)
        if "interval_seconds" in fields:
            name = "until.interval_seconds"
            interval = parse_whole_number(fields["interval_seconds"], name, 1, INTERVAL_LIMIT_SECONDS)
            if seconds > interval * MAX_ROUNDS:
                raise invalid(name, f"must be longer: timeout_seconds holds more than {MAX_ROUNDS} of it")
        try:
            started = datetime.fromisoformat(fields.get("started_at"))  # type: ignore[arg-type]  # TypeError is caught
        except (TypeError, ValueError):
            started = None
        if started is None or started.tzinfo is None:
            raise invalid("until.started_at", "must be an ISO 8601 time with its zone, as Step Functions gives it")
        return cls(Medium(medium) if medium else None, publishing, started.timestamp() + seconds)

    def holds(self, state: StreamState) -> bool:
        """Whether the state is what is waited for; what is not known is not."""
        value = state.values[self.medium] if self.medium else state.publishing
        return value is self.publishing

    def timeout(self) -> StreamStateTimeout:
        """The error of a wait whose time is past."""
        waited_for = f"{self.medium or 'any medium'} {'on' if self.publishing else 'off'}"
        return StreamStateTimeout(f"The time to wait is past, and the state did not come to be: {waited_for}.")


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a target and what of it the queue was told, as kept in the table.

    `sequence` grows by one with each change of the known values. It starts with the time in milliseconds, so that it
    does not go back when an item has expired and is made anew. `revision` counts the writes; 0: not written yet.
    `was_observed_at_ms` is the age of what was known before the last merge; `has_turned` says that the merge made true
    of false or false of true.
    """

    target: Target
    facts: Mapping[str, Fact] = field(default_factory=dict)
    sequence: int = 0
    told: Mapping[str, bool | None] | None = None
    told_sequence: int = 0
    revision: int = 0
    was_observed_at_ms: int | None = None
    has_turned: bool = False

    @property
    def corrects_event(self) -> bool:
        """Whether the last merge turned a value of a target of which pushed events have told."""
        return self.has_turned and bool({PRESENT, LEFT} & self.facts.keys())

    @property
    def is_news(self) -> bool:
        """Whether the queue was not told of the last change; that nothing is known of a new target is none."""
        if self.told is None and not any(value is not None for value in self.state().values.values()):
            return False
        return self.sequence > self.told_sequence

    def state(self, source: str = "table", rtc_request_id: str | None = None) -> StreamState:
        """What is known, as an answer of the source."""
        return StreamState(self.target, self.facts, source, rtc_request_id)

    def forgotten(self) -> Self:
        """What is left when its time is over: that nothing is known any more is a change too."""
        knew = any(value is not None for value in self.state().values.values())
        return replace(self, facts={}, sequence=self.sequence + knew)

    def merged(self, facts: Mapping[str, Fact], now_ms: int) -> Self:
        """What is known after new facts: for each, the one of the latest time; at equal times true, then unknown.

        The same facts in any order and with any repeats give the same values.
        """
        names = self.facts.keys() | facts.keys()
        latest = {
            name: max((of[name] for of in (self.facts, facts) if name in of), key=Fact.precedence) for name in names
        }
        before = self.state()
        known = replace(self, facts=latest, revision=self.revision + 1, was_observed_at_ms=before.observed_at_ms)
        changed = [{was, known.state().values[name]} for name, was in before.values.items()]
        changed = [values for values in changed if len(values) > 1]
        sequence = self.sequence + bool(changed) if self.sequence else now_ms
        return replace(known, sequence=sequence, has_turned={True, False} in changed)

    def message(self, source: str, rtc_request_id: str | None) -> dict[str, Any]:
        """The queue message that tells what is known."""
        state = self.state(source, rtc_request_id)
        values = state.values
        told = self.told or dict.fromkeys(values)
        what = (self.sequence,) if self.is_news else (self.sequence, state.observed_at_ms)
        return {
            **state.answer(),
            "version": MESSAGE_VERSION,
            "id": self.target.digest(*what),
            "sequence": self.sequence,
            "changed": [name for name, value in values.items() if value != told[name]],
            "previous": {medium.value: self.told[medium] for medium in Medium} if self.told else None,
        }


def problem_message(target: Target, error: StreamStateError, at_ms: int) -> dict[str, Any]:
    """The queue message that says why nothing is known of a target that was asked for by name."""
    return {
        "type": "stream_state_problem",
        **target.as_dict(),
        "problem": error.problem(),
        "version": MESSAGE_VERSION,
        "id": target.digest(type(error).__name__, at_ms),
    }


def iso_time(at_ms: int | None) -> str | None:
    """UTC with milliseconds, such as 2026-11-23T03:04:05.678Z."""
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_targets(value: object, app_ids: Sequence[str], most: int) -> list[Target]:
    """The targets of a list with 1 to `most` entries; `InvalidTarget` names the index of the first bad one."""
    if not isinstance(value, list) or not 1 <= len(value) <= most:
        raise invalid("targets", f"must be a list of 1 to {most} objects with room_id and user_id")
    return [Target.parse(entry, app_ids, f"targets[{index}]") for index, entry in enumerate(value)]
