"""Stream states of one target, of several, of whole rooms, or of many in turn: asked for and recorded."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import batched
from typing import Any, Self

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.adapters.rate_limiter import Function
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import MAX_BATCH_KEYS
from stream_state.adapters.volcengine import VolcengineClient
from stream_state.clock import CLOCK, Clock
from stream_state.domain.documents import Answer
from stream_state.domain.merging import Merge, StateRecord
from stream_state.domain.observations import Observations, not_found
from stream_state.domain.outcomes import Outcome
from stream_state.domain.states import state_of
from stream_state.domain.targets import Room, Target, sort_key
from stream_state.errors import QuotaExceeded, RtcActionRetired, StateUnavailable, StreamStateError, TargetNotFound
from stream_state.observability import log_error, logger, record
from stream_state.services.asking import Asking, Found, not_reached
from stream_state.services.recording import Recorder
from stream_state.services.rooms import NOTHING, Member, Rooms, Step
from stream_state.settings import Settings


class Lookup:
    """Answers for targets from the vendor or from their records; safe to share among threads.

    `query` is that of the settings. `max_wait_seconds` bounds the waiting for slots, besides the time that the targets
    take at the rate `qps`.
    """

    def __init__(
        self,
        rtc: VolcengineClient,
        store: StateStore,
        recorder: Recorder,
        *,
        query: str = "on",
        max_wait_seconds: float = math.inf,
        qps: float = 1,
        clock: Clock = CLOCK,
    ) -> None:
        self.query = query
        self._rtc = rtc
        self._rooms = Rooms(rtc, store)
        self._store = store
        self._recorder = recorder
        self._max_wait_seconds = max_wait_seconds
        self._qps = qps
        self._clock = clock

    @classmethod
    def from_settings(cls, settings: Settings, store: StateStore, function: Function) -> Self:
        """A lookup as the settings describe it, for the function that the rate limiter's metrics name."""
        # Somebody waits for the answers of api and task. Sweeps and rechecks wait for their turn, and deliver.
        is_asked = function in ("api", "task")
        return cls(
            VolcengineClient.from_settings(settings, function),
            store,
            Recorder.from_settings(settings, store, delivers=not is_asked),
            query=settings.rtc_query,
            max_wait_seconds=settings.rtc_max_wait_seconds if is_asked else math.inf,
            qps=settings.rtc_qps,
        )

    @property
    def queries(self) -> bool:
        """Whether GetUserStreamState is called."""
        return self.query == "on"

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
        if self.query == "on":
            found = Found(self._fresh(users, max_age_seconds), logs_errors=logs_errors)
        else:
            found = Found(self.from_table(users, without_record()), logs_errors=logs_errors)
        missing = sorted({*targets} - found.outcomes.keys(), key=sort_key)
        if len(missing) == 1 and isinstance(missing[0], Target):
            found.add([self.ask(missing[0], deadline)])
        else:
            found.add(self.each(missing, deadline, max_age_seconds=max_age_seconds))
        if isinstance(found.halt, RtcActionRetired) and self.query == "on":
            found.add(self.from_table([target for target in missing if isinstance(target, Target)], found.halt))
            rooms = [target for target in missing if isinstance(target, Room)]
            found.add(self.each(rooms, deadline, by_presence=True))
        return [outcome for target in targets for outcome in found.of(target)]

    def recheck(self, target: Target, deadline: float) -> Outcome:
        """The outcome of asking once more about a target whose record is in doubt: for presence only, if need be."""
        if self.query == "off":
            return Outcome(target, without_record(), without_record())
        if self.query == "on":
            outcome = self.ask(target, deadline, is_recheck=True)
            if not isinstance(outcome.answer, RtcActionRetired):
                return outcome
            withdrawn()
        for step in self._steps([target], deadline, by_presence=True):
            if isinstance(step, Member):
                return self._note(step, is_recheck=True)
            if isinstance(step, Outcome):
                return step
        raise not_reached()

    def each(
        self,
        targets: Iterable[Target | Room],
        deadline: float,
        *,
        by_presence: bool | None = None,
        max_age_seconds: int = 0,
    ) -> Iterator[Outcome | Room | None]:
        """The outcome of each target, as it comes, those of a room's users before the room, and None now and then.

        `by_presence`: ask who is in the rooms only, as with `RTC_QUERY=presence`. See `Asking.run`.
        """
        if self.query == "off":
            for batch in batched(targets, MAX_BATCH_KEYS, strict=False):
                yield from self.from_table([target for target in batch if isinstance(target, Target)], without_record())
                for room in (target for target in batch if isinstance(target, Room)):
                    members = self._rooms.known(room, NOTHING)
                    yield from (_unasked(member.before, room) for member in members if member.before)
                    yield room
            return
        by_presence = self.query == "presence" if by_presence is None else by_presence
        oldest_ms = self._clock.now_ms() - max_age_seconds * 1000 if max_age_seconds else math.inf
        users = sum(isinstance(target, Target) for target in targets) if isinstance(targets, Sequence) else 0

        def ask(member: Member, before_call: Callable[[], None], count: int) -> Outcome:
            is_fresh = member.before is not None and member.before.state.is_whole_since(oldest_ms)
            if by_presence or is_fresh or "offline" in member.presence:
                return self._note(member)
            wait_seconds = self._wait_seconds(max(users, count))
            return self.ask(member.target, deadline, member, before_call, wait_seconds=wait_seconds)

        yield from Asking(ask, self._clock).run(self._steps(targets, deadline, by_presence=by_presence), deadline)

    def _steps(self, targets: Iterable[Target | Room], deadline: float, *, by_presence: bool) -> Iterator[Step]:
        is_bounded = self._max_wait_seconds < math.inf and not by_presence
        most = (deadline - self._clock.monotonic()) * self._qps if is_bounded else math.inf
        options: Any = {"by_presence": by_presence, "wait_seconds": self._max_wait_seconds, "most": most}
        return self._rooms.steps(targets, deadline, **options)

    def from_table(self, targets: Sequence[Target], missing: StreamStateError) -> list[Outcome]:
        """The record of each target without asking; `missing` where there is none. Raises `StateUnavailable`."""
        records = self._store.read(targets)
        if isinstance(missing, RtcActionRetired):
            record("RtcActionRetired")
            if records:
                logger.warning("The answer is the last known state: Volcengine has withdrawn GetUserStreamState.")
        found = {target: _unasked(found) for target, found in records.items()}
        return [found.get(target) or Outcome(target, missing, missing) for target in targets]

    def _wait_seconds(self, count: int) -> float:
        return self._max_wait_seconds + count / self._qps

    def ask(
        self,
        target: Target,
        deadline: float,
        member: Member | None = None,
        before_call: Callable[[], None] = lambda: None,
        *,
        wait_seconds: float | None = None,
        is_recheck: bool = False,
    ) -> Outcome:
        """Ask the vendor and record the answer; that the target is unknown is an observation too.

        `wait_seconds` bounds the waiting for a slot.
        """
        wait_seconds = self._wait_seconds(1) if wait_seconds is None else wait_seconds
        before, said = (member.before, member.presence) if member else (None, {})
        try:
            result = self._rtc.stream_state(target, deadline, max_wait_seconds=wait_seconds, before_call=before_call)
        except TargetNotFound as error:
            absent = {**said, **not_found(error.observed_at_ms or self._clock.now_ms())}
            merge = self._observe(target, absent, before, error.rtc_request_id, is_recheck=is_recheck)
            return Outcome(target, error, merge)
        except StreamStateError as error:
            if member and said:
                self._observe(target, said, before, member.rtc_request_id)
            return Outcome(target, error, error, is_asked=not isinstance(error, QuotaExceeded))
        seen, request_id = {**said, **result.observations()}, result.rtc_request_id
        merge = self._observe(target, seen, before, request_id, is_recheck=is_recheck)
        state = merge.after.state if isinstance(merge, Merge) else state_of(seen)
        return Outcome(target, Answer(target, state, "query", request_id), merge)

    def _note(self, member: Member, *, is_recheck: bool = False) -> Outcome:
        """Record what a presence call said of a user, and take the rest from the record."""
        target, before, request_id = member.target, member.before, member.rtc_request_id
        if not member.presence and not is_recheck:
            if before and before.observations:
                return _unasked(before)
            return Outcome(target, without_record(), without_record())
        merge = self._observe(target, member.presence, before, request_id, is_recheck=is_recheck)
        state = merge.after.state if isinstance(merge, Merge) else state_of(member.presence)
        if "offline" in member.presence:
            return Outcome(target, Answer(target, state, "query", request_id), merge)
        # Nobody asked about the media of a user who is there.
        return Outcome(target, Answer(target, state), merge)

    def _observe(
        self,
        target: Target,
        observations: Observations,
        before: StateRecord | None,
        rtc_request_id: str | None,
        *,
        is_recheck: bool = False,
    ) -> Merge | StateUnavailable:
        try:
            return self._recorder.observe(
                target, observations, before, source="query", rtc_request_id=rtc_request_id, is_recheck=is_recheck
            )
        except StateUnavailable as error:
            log_error(error, target)
            return error

    def _fresh(self, targets: Sequence[Target], max_age_seconds: int) -> list[Outcome]:
        """The outcomes of those targets whose four media are all known as of `max_age_seconds` ago or later."""
        if not max_age_seconds or not targets:
            return []
        try:
            records = self._store.read(targets)
        except StateUnavailable as error:
            # The vendor can still be asked.
            log_error(error)
            return []
        oldest_ms = self._clock.now_ms() - max_age_seconds * 1000
        return [_unasked(found) for found in records.values() if found.state.is_whole_since(oldest_ms)]


def deadline_of(context: LambdaContext, reserve_seconds: float) -> float:
    """The monotonic time that leaves `reserve_seconds` of the invocation."""
    return CLOCK.monotonic() + context.get_remaining_time_in_millis() / 1000 - reserve_seconds


def without_record() -> TargetNotFound:
    """The error of a target without a record while no calls are made."""
    return TargetNotFound("The target has no record, and its streams are not asked for: see RTC_QUERY.")


def withdrawn() -> None:
    """Say that GetUserStreamState is withdrawn, and that presence calls take its place."""
    record("RtcActionRetired")
    logger.warning("Volcengine has withdrawn GetUserStreamState: presence calls take its place.")


def _unasked(state_record: StateRecord, room: Room | None = None) -> Outcome:
    answer = Answer(state_record.target, state_record.state)
    return Outcome(state_record.target, answer, Merge(state_record, state_record), room=room)
