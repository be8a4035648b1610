"""Many users looked at side by side: their outcomes in order, and the error that every other user would meet."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from stream_state.adapters.vendor_errors import concerns_every_target
from stream_state.adapters.vendor_http import MAX_CONCURRENCY
from stream_state.adapters.volcengine import MIN_CALL_SECONDS
from stream_state.clock import Clock
from stream_state.domain.documents import Answer, Outcome
from stream_state.domain.targets import Room, Target
from stream_state.errors import QuotaExceeded, StreamStateError, TargetNotFound
from stream_state.observability import log_error
from stream_state.services.in_order import completed, in_order
from stream_state.services.rooms import Member, Step

type Came = Outcome | Room | None


def ask_all(
    ask: Callable[[Member, Callable[[], None], int], Outcome], steps: Iterable[Step], deadline: float, clock: Clock
) -> Iterator[Came]:
    """The outcome of each user, a room after its users, and None now and then while none comes.

    `ask` gets a user, what to do before the call, and how many users there are so far. Ends early, leaving out the
    rest, when time is up, and after an error that would meet every other target too.
    """
    halt = _Halt()

    def turn(member: Member, count: int) -> Came:
        outcome = ask(member, halt.check, count)
        # The turn of a user who was kept from being asked about is still to come.
        is_asked = outcome.is_asked and outcome.answer is not halt.error
        halt.note(outcome)
        return replace(outcome, is_asked=is_asked, room=member.room, before=member.before)

    def turns(pool: ThreadPoolExecutor) -> Iterator[Future[Came] | None]:
        count = 0
        for step in steps:
            if halt.error or clock.monotonic() + MIN_CALL_SECONDS > deadline:
                return
            if isinstance(step, Outcome):
                halt.note(step)
            if isinstance(step, Member):
                count += 1
                yield pool.submit(turn, step, count)
            else:
                yield completed(step) if step else None

    with ThreadPoolExecutor(MAX_CONCURRENCY) as pool:
        yield from in_order(turns(pool), MAX_CONCURRENCY)


@dataclass
class _Halt:
    """The first error that every other target would meet too."""

    error: StreamStateError | None = None

    def note(self, outcome: Outcome) -> None:
        """Keep the error of an outcome if every other target would meet it."""
        self.error = self.error or error_of_all(outcome)

    def check(self) -> None:
        """Raise the error."""
        if self.error:
            raise self.error


class Found:
    """Outcomes by target, as they come; `missing` is the error of a target that was not reached."""

    def __init__(self, outcomes: Iterable[Outcome], *, logs_errors: bool) -> None:
        self.outcomes = {outcome.target: outcome for outcome in outcomes}
        self.missing: StreamStateError = not_reached()
        self._whole: set[Room] = set()
        self._logs_errors = logs_errors

    def add(self, outcomes: Iterable[Came]) -> None:
        """Take more outcomes, later ones of a target in place of earlier ones, and rooms whose users all came."""
        for outcome in outcomes:
            if isinstance(outcome, Room):
                self._whole.add(outcome)
            elif outcome:
                self.outcomes[outcome.target] = outcome
                self.missing = error_of_all(outcome) or self.missing
                if outcome.error and self._logs_errors:
                    log_error(outcome.error, outcome.target)

    def is_answered(self, target: Target) -> bool:
        """Whether the vendor answered for a target, if only that it does not know it."""
        return target in self.outcomes and isinstance(self.outcomes[target].answer, Answer | TargetNotFound)

    def of(self, target: Target | Room) -> list[Outcome]:
        """The outcome of a target; those of a room's users by their ids, and the error if some are missing."""
        own = self.outcomes.get(target) or Outcome(target, self.missing, self.missing, is_asked=False)
        if isinstance(target, Target):
            return [own]
        # A user who was named beside the room and is not in it is no result of the room.
        found = {
            user: outcome
            for user, outcome in self.outcomes.items()
            if isinstance(user, Target) and user.room == target
            if outcome.room or not (outcome.has_gone or isinstance(outcome.answer, TargetNotFound))
        }
        return [found[user] for user in sorted(found)] + ([] if target in self._whole else [own])


def error_of_all(outcome: Outcome) -> StreamStateError | None:
    """The error of an outcome that every other target would meet too."""
    error = outcome.error
    return error if error and outcome.concerns_others and concerns_every_target(error) else None


def not_reached() -> QuotaExceeded:
    """The error of a target that was not asked, for lack of time."""
    detail = "The time was up before this target's turn. Ask for fewer targets at once, or allow more time."
    return QuotaExceeded(detail, retry_after_seconds=1)
