"""Observations as callback events and queries bring them, and the records that they add up to."""

from functools import partial

from stream_state.domain.merging import StateRecord
from stream_state.domain.observations import Mark, Observations, QueryResult
from stream_state.domain.states import SKEW_MS
from stream_state.domain.targets import Medium, Target

TARGET = Target("app-1", "class-1", "teacher")
NOW_MS = 1_795_403_045_678


def event(kind: str, at_ms: int, *, arrived_at_ms: int | None = None, device: str | None = None) -> Observations:
    """A callback event; without a time of arrival it arrives at once."""
    return {kind: Mark(at_ms, at_ms if arrived_at_ms is None else min(at_ms, arrived_at_ms), None, device)}


join, leave, lost, end = (partial(event, kind) for kind in ("join", "leave", "lost", "end"))
start, stop, cut = (partial(event, f"video.{kind}") for kind in ("start", "stop", "cut"))
audio = partial(event, "audio.start")


def query(at_ms: int, **media: bool | None) -> Observations:
    """A query that found the user; the media that are not named are off."""
    return QueryResult({medium: media.get(medium, False) for medium in Medium}, at_ms, None).observations()


def record_of(*history: Observations, skew_ms: int = SKEW_MS) -> StateRecord:
    """The record of a history, as if it had been written and read again."""
    record = StateRecord(TARGET, revision=1, skew_ms=skew_ms)
    for observations in history:
        record = record.merged(observations, NOW_MS).after
    return record
