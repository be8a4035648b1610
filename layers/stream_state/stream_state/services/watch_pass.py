"""The pass of a sweep over the watch list: under a lease, from the stored cursor, each target once at most."""

import math
import secrets
from collections import deque
from collections.abc import Iterator
from functools import partial

from stream_state.adapters.table import PAGE_ITEMS, entries_of
from stream_state.adapters.watch_list import LEASE_SECONDS, Watch, WatchList
from stream_state.domain.documents import Outcome
from stream_state.domain.merging import Merge
from stream_state.domain.targets import Room, Target
from stream_state.errors import StateUnavailable, StreamStateError
from stream_state.observability import add_metric, log_error, logger

# How often the lease is renewed at least.
KEEP_SECONDS = LEASE_SECONDS / 4


class WatchPass:
    """The watched targets from the stored cursor to the end, then from the start to the cursor."""

    def __init__(self, watch_list: WatchList, *, asks_media: bool) -> None:
        self._watch_list, self._clock, self._asks_media = watch_list, watch_list.table.clock, asks_media
        self._token = secrets.token_hex(8)
        self._cursor: str | None = None
        self._kept_at = self._clock.monotonic()
        self._done_since_kept = 0
        self._rest: Iterator[Watch] = iter(())
        self._order: deque[Watch] = deque()
        self._under_way: dict[Target | Room, Watch] = {}
        # How many targets the pass has, once the last of them has come, and how many had their turn.
        self._size: int | None = None
        self._turns = 0
        self._stalest_ms = math.inf
        self._error: StateUnavailable | None = None

    def begin(self) -> bool:
        """Take the lease, and with it the cursor; False if another sweep holds it."""
        self._kept_at = self._clock.monotonic()
        taken, self._cursor = self._watch_list.take_lease(self._token)
        self._rest = self._watches(self._cursor)
        return taken

    def targets(self) -> Iterator[Target | Room]:
        """At a second call the targets that are not done; then those whose turn has not come."""
        yield from list(self._under_way)
        for watch in self._rest:
            self._order.append(watch)
            self._under_way[watch.target] = watch
            yield watch.target

    def accepts(self, outcome: Outcome) -> bool:
        """Whether the target of an outcome had its turn; notes how old its state was before, and a lost event."""
        self._stalest_ms = min(self._stalest_ms, self._observed_at_ms(outcome))
        if isinstance(outcome.merge, Merge) and outcome.merge.corrects_event:
            add_metric("StateDrift")
        return outcome.is_asked

    def done(self, target: Target | Room, error: StreamStateError | None = None) -> None:
        """Move the cursor past the targets that are done without a gap, and store it after every page.

        `error`: that which every other target would meet too. Such a target has its turn again at the next sweep.
        """
        self._turns += 1
        if error:
            return
        del self._under_way[target]
        self._done_since_kept += 1
        while self._order and self._order[0].target not in self._under_way:
            self._cursor = self._order.popleft().key
        self.keep()

    def remaining(self) -> int:
        """How many watched targets had no turn."""
        watched = self._watch_list.count() if self._size is None else self._size
        return max(watched - self._turns, 0)

    def keep(self) -> None:
        """Renew the lease and store the cursor, if it is time; a hold of the limit can keep every call waiting."""
        if self._done_since_kept >= PAGE_ITEMS or self._clock.monotonic() - self._kept_at >= KEEP_SECONDS:
            self._keep()

    def end(self) -> None:
        """Store the cursor, let go of the lease, and record the age of the stalest state.

        Raises `StateUnavailable` if the list could not be read.
        """
        self._keep(release=True)
        if self._stalest_ms < math.inf:
            add_metric("StalestState", max(self._clock.now() - self._stalest_ms / 1000, 0), "Seconds")
        if self._error:
            raise self._error

    def _observed_at_ms(self, outcome: Outcome) -> float:
        """When the state of an outcome's target was last observed before this turn; infinite if there was no state."""
        if isinstance(outcome.target, Room):
            return math.inf
        last = outcome.merge.before if isinstance(outcome.merge, Merge) else outcome.before
        if outcome.room and (last is None or last.state.present.value is False):
            # The room's list names a user who is new, or who comes back.
            return math.inf
        # That a user was listed says nothing of the media, if asking about these has failed.
        is_failed = self._asks_media and not isinstance(outcome.merge, Merge)
        asked_at_ms = (last.media_asked_at_ms if is_failed else last.asked_at_ms) if last else 0
        at_ms = max(last.state.observed_at_ms or 0, asked_at_ms) if last else 0
        return at_ms or (math.inf if outcome.room else self._under_way[outcome.target].watched_at * 1000)

    def _watches(self, start: str | None) -> Iterator[Watch]:
        """The watches after the cursor, then those before it; ends early if the lease is lost."""
        seen = 0
        try:
            for first, last in [(start, None), (None, start)] if start else [(None, None)]:
                for watch in entries_of(partial(self._watch_list.page, last=last), first):
                    if self._clock.monotonic() - self._kept_at > LEASE_SECONDS:
                        logger.warning("The sweep lost the lease of the watch list, and ends.")
                        return
                    seen += 1
                    yield watch
        except StateUnavailable as error:
            # The outcomes of the targets under way come first, under the lease; `end` raises the error.
            self._error = error
            return
        self._size = seen

    def _keep(self, *, release: bool = False) -> None:
        now = self._clock.monotonic()
        try:
            kept = self._watch_list.keep_lease(self._token, self._cursor, release=release)
        except StateUnavailable as error:
            # The lease lasts a while yet: the next try may succeed.
            log_error(error)
            return
        self._kept_at = now if kept else float("-inf")
        self._done_since_kept = 0
