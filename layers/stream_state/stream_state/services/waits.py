"""Waits: whether a target fulfils a condition now, and the rounds of a workflow that waits with a task token."""

from contextlib import suppress
from dataclasses import replace

from stream_state.domain.documents import Answer
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import absent
from stream_state.domain.states import State
from stream_state.domain.targets import Target
from stream_state.domain.waits import Wait, WaitCondition
from stream_state.errors import RtcActionRetired, StateUnavailable, StreamStateError, TargetNotFound
from stream_state.observability import add_metric, log_error
from stream_state.services.lookup import Lookup
from stream_state.services.rooms import Member

# A round waits for a slot no longer: its token costs nothing while it waits, and the next round asks again.
SLOT_WAIT_SECONDS = 1
# The part of an interval in which a round asks: the rest is kept to answer from the record.
SHARE_FOR_ASKING = 0.8


def check(
    lookup: Lookup, target: Target, condition: WaitCondition, deadline: float, max_age_seconds: int = 0
) -> tuple[Answer, bool]:
    """The state of a target, and whether it fulfils a wait condition; an unknown target is "not yet".

    Past the deadline raises `StreamStateTimeout`, if the condition does not hold or if asking failed in a way that may
    pass.
    """
    outcome = lookup.some([target], deadline, max_age_seconds, logs_errors=False)[0]
    is_late = lookup.recorder.clock.now() >= condition.deadline
    answer = outcome.answer
    if isinstance(answer, TargetNotFound):
        merge, at_ms = outcome.merge, answer.observed_at_ms
        unknown = StateRecord(target, absent(at_ms) if at_ms else {})
        found = merge.after if isinstance(merge, Merge) else unknown
        answer = Answer(found, "query" if at_ms else "table", answer.rtc_request_id)
    if isinstance(answer, StreamStateError):
        raise condition.timeout() if answer.retryable and is_late else answer
    holds = condition.holds(answer.record.state)
    if is_late and not holds:
        raise condition.timeout()
    return answer, holds


def begin_round(lookup: Lookup, target: Target, wait: Wait, deadline: float) -> None:
    """Keep the token for whoever observes the condition, and ask once; `deadline` in monotonic seconds.

    Raises `StreamStateTimeout` past the wait's deadline, and the errors that a later round would meet too.
    """
    clock = lookup.recorder.clock
    now_ms, seconds = clock.now_ms(), wait.condition.interval_seconds or 0
    if now_ms >= wait.condition.deadline * 1000:
        raise wait.condition.timeout()
    fresh_ms, skew_ms, oldest_ms = now_ms - seconds * 500, lookup.recorder.store.skew_ms, 0.0
    if lookup.query == "on":
        # If this round gets no answer, what was observed in the last two intervals counts.
        # Within the skew an event stands for what the vendor answers later.
        wait = replace(wait, since_ms=now_ms - max(2 * seconds * 1000, skew_ms))
        # What was observed since the wait began counts: its wake may have failed. Before that only what is fresh does.
        oldest_ms = min(fresh_ms, now_ms - skew_ms, max(wait.condition.started_at * 1000, wait.since_ms))
    # The wait before the mark, and the record after it: a change at the same moment is in the record, or its
    # observer reads the mark and finds the wait.
    lookup.recorder.wait_list.add(target, wait, now_ms)
    found = lookup.recorder.store.mark_waits(target)
    holds = wait.condition.holds(found.state, oldest_ms)
    if not holds and lookup.query == "on" and not _is_fresh(found.state, fresh_ms):
        # The token is dead after the interval.
        answer = _ask(lookup, found, wait, min(deadline, clock.monotonic() + seconds * SHARE_FOR_ASKING))
        if answer and wait.condition.holds(answer.record.state):
            return
        holds = answer is None and wait.condition.holds(found.state, wait.since_ms)
    if holds:
        lookup.recorder.answer(wait, Answer(found))
    else:
        add_metric("WaitsOpen")


def _ask(lookup: Lookup, found: StateRecord, wait: Wait, deadline: float) -> Answer | None:
    """What the vendor says, None if there is no answer; recording it has woken the wait if the condition holds."""
    target = found.target
    outcome = lookup.ask(Member(target, found), deadline, SLOT_WAIT_SECONDS)
    answer = outcome.answer
    if isinstance(answer, RtcActionRetired):
        last_known = lookup.from_table([target], answer)[0].answer
        answer = Answer(found) if found.observations else last_known
    if isinstance(answer, TargetNotFound):
        return Answer(outcome.merge.after if isinstance(outcome.merge, Merge) else StateRecord(target))
    if isinstance(answer, Answer):
        if isinstance(outcome.merge, StreamStateError) and wait.condition.holds(answer.record.state):
            # Nothing was recorded.
            lookup.recorder.answer(wait, answer)
        return answer
    if not answer.retryable:
        with suppress(StateUnavailable):
            lookup.recorder.wait_list.remove(target, wait)
        raise answer
    log_error(answer, target)
    return None


def _is_fresh(state: State, oldest_ms: float) -> bool:
    """Whether the vendor said at that time or later what each medium is, or that the user is not there."""
    present = state.present
    return state.is_whole_since(oldest_ms) or (present.value is False and (present.at_ms or 0) >= oldest_ms)
