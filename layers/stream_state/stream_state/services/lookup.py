"""Stream states of one target, of several, of whole rooms, or of many in turn: asked for and recorded."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

from stream_state.adapters.rate_limiter import Function
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import Page
from stream_state.adapters.volcengine import VolcengineClient
from stream_state.domain.documents import Answer, Outcome, Source
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Observations, absent
from stream_state.domain.targets import Room, Target, sort_key
from stream_state.errors import (
    QuotaExceeded,
    RtcActionRetired,
    RtcProtocolError,
    StateUnavailable,
    StreamStateError,
    TargetNotFound,
)
from stream_state.observability import add_metric, log_error, logger
from stream_state.services.asking import Came, Found, ask_all
from stream_state.services.recording import Recorder
from stream_state.services.rooms import Member, Rooms
from stream_state.settings import Settings


@dataclass
class Lookup:
    """Answers for targets from the vendor or from their records; safe to share among threads.

    `query` is that of the settings. `max_wait_seconds` bounds the waiting for slots, besides the time that the targets
    take at the rate `qps`.
    """

    rtc: VolcengineClient
    recorder: Recorder
    query: str = "on"
    max_wait_seconds: float = math.inf
    qps: float = 1

    @classmethod
    def from_settings(cls, settings: Settings, store: StateStore, function: Function) -> Self:
        """A lookup as the settings describe it, for the function that the rate limiter's metrics name."""
        recorder = Recorder.from_settings(settings, store)
        rtc = VolcengineClient.from_settings(settings, store.table, function)
        # Somebody waits for the answers of api and task; sweeps and rechecks wait for their turn.
        max_wait_seconds = settings.rtc_max_wait_seconds if function in ("api", "task") else math.inf
        return cls(rtc, recorder, settings.rtc_query, max_wait_seconds, settings.rtc_qps)

    def one(self, target: Target, deadline: float, max_age_seconds: int = 0) -> Answer:
        """The state of a target: a record of at most that age, or else asked for.

        `deadline` in monotonic seconds. Raises the errors of `VolcengineClient.stream_state`.
        """
        answer = self.some([target], deadline, max_age_seconds, logs_errors=False)[0].answer
        if isinstance(answer, StreamStateError):
            raise answer
        return answer

    def some(
        self, targets: Sequence[Target | Room], deadline: float, max_age_seconds: int = 0, *, logs_errors: bool = True
    ) -> list[Outcome]:
        """The outcome of each target, in the order asked; a target named twice costs one call.

        In place of a room stand the outcomes of its users, and the error if not all of them were asked. Without
        `logs_errors` the caller raises the errors, and logs them there.
        """
        users = [target for target in targets if isinstance(target, Target)]
        known = self._fresh(users, max_age_seconds) if self.query == "on" else self.from_table(users, without_record())
        found = Found(known, logs_errors=logs_errors)
        missing = sorted({*targets} - found.outcomes.keys(), key=sort_key)
        if len(missing) == 1 and isinstance(missing[0], Target):
            found.add([self.ask(Member(missing[0]), deadline)])
        else:
            found.add(self.each(missing, deadline, max_age_seconds=max_age_seconds))
        if isinstance(found.missing, RtcActionRetired) and self.query == "on":
            unanswered = [target for target in users if not found.is_answered(target)]
            found.add(self.from_table(unanswered, found.missing))
            found.add(self.each([room for room in missing if isinstance(room, Room)], deadline, query="presence"))
        return [outcome for target in targets for outcome in found.of(target)]

    def room(
        self, room: Room, after: str | None, deadline: float, *, is_refreshed: bool, with_absent: bool
    ) -> Page[Outcome]:
        """A page of the last known states of those who may be in a room; `is_refreshed`: asked for at the first page.

        `with_absent`: also of users who have left. Raises the error if nobody could be asked about.
        """
        is_asked = is_refreshed and after is None
        outcomes = self.some([room], deadline) if is_asked else []
        of_room = [outcome for outcome in outcomes if outcome.target == room]
        if outcomes and outcomes[0].target == room and outcomes[0].error:
            # Of nobody else anything came.
            raise outcomes[0].error
        page = self.recorder.store.room(room, after, to_merge=is_asked)
        found = {record.target.user_id: _unasked(record) for record in page.entries if record.observations}
        for outcome in outcomes:
            # A user without a record was asked about all the same: the write failed.
            if isinstance(outcome.target, Target) and outcome.target.user_id <= (page.next_key or "~"):
                found[outcome.target.user_id] = outcome
        shown = [found[user_id] for user_id in sorted(found) if with_absent or not found[user_id].has_gone]
        # The last word is about the room itself, if not all of its users could be asked about in time.
        return Page(shown + of_room, page.next_key)

    def recheck(self, stored: StateRecord, deadline: float) -> Outcome:
        """Ask once more about a target whose record is in doubt: by a presence call if media are not asked about."""
        target = stored.target
        if self.query == "off":
            return Outcome(target, without_record(), without_record())
        if self.query == "on":
            outcome = self.ask(Member(target, stored, recheck_due_ms=stored.recheck_at_ms), deadline)
            if not isinstance(outcome.answer, RtcActionRetired):
                return outcome
            withdrawn()
        rooms = Rooms(self.rtc, self.recorder.store, deadline, "presence", self.max_wait_seconds)
        step = next(step for step in rooms.steps([target]) if isinstance(step, Member | Outcome))
        if isinstance(step, Outcome):
            return step
        return self._by_presence(replace(step, recheck_due_ms=stored.recheck_at_ms))

    def each(
        self,
        targets: Iterable[Target | Room],
        deadline: float,
        *,
        query: str | None = None,
        max_age_seconds: int = 0,
    ) -> Iterator[Came]:
        """The outcome of each target in their order, those of a room's users before the room, and None now and then.

        `query`: in place of that of the settings, as when the action is withdrawn. See `ask_all`.
        """
        query = query or self.query
        is_bounded = query == "on" and self.max_wait_seconds < math.inf
        most = (deadline - self.recorder.clock.monotonic()) * self.qps if is_bounded else math.inf
        users = sum(isinstance(target, Target) for target in targets) if isinstance(targets, Sequence) else 0

        def ask(member: Member, before_call: Callable[[], None], count: int) -> Outcome:
            is_fresh = member.before is not None and self._is_fresh(member.before, max_age_seconds)
            if query != "on" or is_fresh or "offline" in member.presence:
                return self._by_presence(member)
            return self.ask(member, deadline, self._wait_seconds(max(users, count)), before_call)

        rooms = Rooms(self.rtc, self.recorder.store, deadline, query, self.max_wait_seconds, most)
        yield from ask_all(ask, rooms.steps(targets), deadline, self.recorder.clock)

    def from_table(self, targets: Sequence[Target], missing: StreamStateError) -> list[Outcome]:
        """The record of each target without asking; `missing` where there is none."""
        try:
            records = self.recorder.store.read(targets)
        except StateUnavailable as error:
            return [Outcome(target, error, error) for target in targets]
        if isinstance(missing, RtcActionRetired):
            add_metric("RtcActionRetired")
            if records:
                logger.warning("The answer is the last known state: Volcengine has withdrawn GetUserStreamState.")
        found = {target: _unasked(found) for target, found in records.items()}
        return [found.get(target) or Outcome(target, missing, missing) for target in targets]

    def ask(
        self,
        member: Member,
        deadline: float,
        wait_seconds: float | None = None,
        before_call: Callable[[], None] = lambda: None,
    ) -> Outcome:
        """Ask the vendor and record the answer; that the target is unknown is an observation too.

        `wait_seconds` bounds the waiting for a slot.
        """
        target, said = member.target, member.presence
        wait_seconds = self._wait_seconds(1) if wait_seconds is None else wait_seconds
        try:
            result = self.rtc.stream_state(target, deadline, max_wait_seconds=wait_seconds, before_call=before_call)
        except TargetNotFound as error:
            observed = {**said, **absent(error.observed_at_ms or self.recorder.clock.now_ms())}
            return replace(self._recorded(member, observed, error.rtc_request_id), answer=error)
        except StreamStateError as error:
            if said:
                self._recorded(member, said, member.rtc_request_id)
            return Outcome(target, error, error, is_asked=not isinstance(error, QuotaExceeded))
        return self._recorded(member, {**said, **result.observations()}, result.rtc_request_id)

    def _wait_seconds(self, count: int) -> float:
        return self.max_wait_seconds + count / self.qps

    def _by_presence(self, member: Member) -> Outcome:
        """Record what a presence call said of a user, and take the rest from the record."""
        if member.presence or member.recheck_due_ms:
            # Nobody asked about the media of a user who is there.
            source: Source = "query" if "offline" in member.presence else "table"
            return self._recorded(member, member.presence, member.rtc_request_id, source)
        if member.before and member.before.observations:
            return _unasked(member.before)
        error: StreamStateError = without_record()
        if member.before is None:
            error = StateUnavailable("The target's record could not be read.")
        elif self.query != "off":
            error = RtcProtocolError("Volcengine's answer leaves the user out, which proves nothing.")
        return Outcome(member.target, error, error)

    def _recorded(
        self, member: Member, observations: Observations, rtc_request_id: str | None, source: Source = "query"
    ) -> Outcome:
        """Record observations; the answer with them, which stands also if the table fails."""
        recorder, target = self.recorder, member.target
        asked_id = rtc_request_id if source == "query" else None
        try:
            merge = recorder.observe(
                target,
                observations,
                member.before,
                source="query",
                rtc_request_id=rtc_request_id,
                recheck_due_ms=member.recheck_due_ms,
            )
        except StateUnavailable as error:
            log_error(error, target)
            before = recorder.store.newest(target, member.before)
            return Outcome(target, Answer(before.merged(observations, 0).after, source, asked_id), error)
        return Outcome(target, Answer(merge.after, source, asked_id), merge)

    def _is_fresh(self, found: StateRecord, max_age_seconds: int) -> bool:
        """Whether all four media are known, each observed at most so long ago; with 0 no record is fresh."""
        oldest_ms = self.recorder.clock.now_ms() - max_age_seconds * 1000
        return max_age_seconds > 0 and found.state.is_whole_since(oldest_ms)

    def _fresh(self, targets: Sequence[Target], max_age_seconds: int) -> list[Outcome]:
        """The outcomes of those targets whose records are fresh enough."""
        try:
            records = self.recorder.store.read(targets) if max_age_seconds and targets else {}
        except StateUnavailable as error:
            # The vendor can still be asked.
            log_error(error)
            return []
        return [_unasked(found) for found in records.values() if self._is_fresh(found, max_age_seconds)]


def without_record() -> TargetNotFound:
    """The error of a target without a record while no calls are made."""
    return TargetNotFound("The target has no record, and its streams are not asked for: see RTC_QUERY.")


def withdrawn() -> None:
    """Say that GetUserStreamState is withdrawn, and that presence calls take its place."""
    add_metric("RtcActionRetired")
    logger.warning("Volcengine has withdrawn GetUserStreamState: presence calls take its place.")


def _unasked(found: StateRecord) -> Outcome:
    return Outcome(found.target, Answer(found), Merge(found, found))
