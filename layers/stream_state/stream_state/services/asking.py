"""Many users looked at side by side: the outcomes as they come, and the error that every other user would meet."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from queue import Empty, SimpleQueue

from stream_state.adapters.vendor_errors import concerns_every_target
from stream_state.adapters.vendor_http import MAX_CONCURRENCY
from stream_state.adapters.volcengine import MIN_CALL_SECONDS
from stream_state.clock import Clock
from stream_state.domain.outcomes import Outcome
from stream_state.domain.targets import Room, Target
from stream_state.errors import QuotaExceeded, StreamStateError, TargetNotFound
from stream_state.observability import log_error
from stream_state.services.rooms import Member, Step

# A sweep that waits for outcomes is asked this often whether a message waits to be sent.
IDLE_SECONDS = 1


class Asking:
    """One run over many users; `ask` gets a user, what to do before the call, and how many users there are so far."""

    def __init__(self, ask: Callable[[Member, Callable[[], None], int], Outcome], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._done: SimpleQueue[Future[Outcome]] = SimpleQueue()
        self._halt: StreamStateError | None = None
        self._count = 0
        # The users of each room that are under way, and the rooms that have no more to come.
        self._under_way: Counter[Room | None] = Counter()
        self._whole: set[Room] = set()

    def run(self, steps: Iterable[Step], deadline: float) -> Iterator[Outcome | Room | None]:
        """The outcome of each user, as it comes, a room after its users, and None now and then while none comes.

        Many are asked at once, few are held in memory. Ends early, leaving out the rest, when time is up, and after an
        error that would meet every other target too.
        """
        with ThreadPoolExecutor(MAX_CONCURRENCY) as pool:
            waiting = 0
            for step in steps:
                if self._halt or self._clock.monotonic() + MIN_CALL_SECONDS > deadline:
                    break
                if isinstance(step, Member):
                    self._count += 1
                    self._under_way[step.room] += 1
                    pool.submit(self._turn, step, self._count).add_done_callback(self._done.put)
                    waiting += 1
                elif isinstance(step, Room):
                    self._whole.add(step)
                    yield from self._ended(step)
                else:
                    yield step
                    self._note(step)
                while waiting and (waiting == MAX_CONCURRENCY or not self._done.empty()):
                    yield from self._next_done()
                    waiting -= 1
            for _ in range(waiting):
                yield from self._next_done()

    def _turn(self, member: Member, count: int) -> Outcome:
        """Ask, unless an error has come meanwhile that this user would meet too."""
        was_halted = False

        def before_call() -> None:
            nonlocal was_halted
            if self._halt:
                was_halted = True
                raise self._halt

        outcome = self._ask(member, before_call, count)
        self._note(outcome)
        return replace(outcome, is_asked=outcome.is_asked and not was_halted, room=member.room)

    def _note(self, outcome: Outcome | None) -> None:
        """Stop after an error that every other target would meet."""
        if outcome and isinstance(outcome.answer, StreamStateError) and concerns_every_target(outcome.answer):
            self._halt = self._halt or outcome.answer

    def _next_done(self) -> Iterator[Outcome | Room | None]:
        """The next outcome, after None for each second that passes without one; its room if that was the last."""
        outcome = None
        while not outcome:
            with suppress(Empty):
                outcome = self._done.get(timeout=IDLE_SECONDS).result()
            yield outcome
        if outcome.room:
            self._under_way[outcome.room] -= 1
            yield from self._ended(outcome.room)

    def _ended(self, room: Room) -> Iterator[Room]:
        if room in self._whole and not self._under_way[room]:
            yield room


class Found:
    """Outcomes by target, and by room, as they come; `halt` is the error of a target that was not reached."""

    def __init__(self, outcomes: Iterable[Outcome], *, logs_errors: bool) -> None:
        self.outcomes = {outcome.target: outcome for outcome in outcomes}
        self.whole: set[Room] = set()
        self.halt: StreamStateError = not_reached()
        self._of_room: defaultdict[Room, dict[Target, Outcome]] = defaultdict(dict)
        self._logs_errors = logs_errors

    def add(self, outcomes: Iterable[Outcome | Room | None]) -> None:
        """Take more outcomes, later ones of a target in place of earlier ones, and rooms whose users all came."""
        for outcome in outcomes:
            if isinstance(outcome, Room):
                self.whole.add(outcome)
            if not isinstance(outcome, Outcome):
                continue
            if outcome.room and isinstance(outcome.target, Target):
                self._of_room[outcome.room][outcome.target] = outcome
            else:
                self.outcomes[outcome.target] = outcome
            if isinstance(outcome.answer, StreamStateError) and self._logs_errors:
                log_error(outcome.answer, outcome.target)
            if isinstance(outcome.answer, StreamStateError) and concerns_every_target(outcome.answer):
                self.halt = outcome.answer

    def of(self, target: Target | Room) -> list[Outcome]:
        """The outcome of a target; those of a room's users by their ids, and the error if some are missing."""
        if target in self.outcomes:
            return [self.outcomes[target]]
        # Users who were named beside their room came by themselves.
        found = {
            user: outcome
            for user, outcome in self.outcomes.items()
            if isinstance(user, Target) and user.room == target and not isinstance(outcome.answer, TargetNotFound)
        }
        found |= self._of_room[target] if isinstance(target, Room) else {}
        outcomes = [found[user] for user in sorted(found)]
        return outcomes if target in self.whole else [*outcomes, Outcome(target, self.halt, self.halt, is_asked=False)]


def not_reached() -> QuotaExceeded:
    """The error of a target that was not asked, for lack of time."""
    detail = "The time was up before this target's turn. Ask for fewer targets at once, or allow more time."
    return QuotaExceeded(detail, retry_after_seconds=1)
