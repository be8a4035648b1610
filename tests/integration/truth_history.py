"""One random history: events and calls come, answers and messages go, and the model judges every one of them."""

import heapq
import math
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from stream_state.domain.documents import Answer
from stream_state.domain.requests import SweepRequest
from stream_state.domain.states import SKEW_MS
from stream_state.domain.targets import Room, Target
from stream_state.errors import DeliveryFailed, StreamStateError
from tests.integration.truth_functions import Crash, Instance, VirtualClock
from tests.integration.truth_judge import HOUR_MS, PARTITION, Judge
from tests.integration.truth_model import ROOM, START_MS, Event, Model, Said, Vendor
from tests.unit.memory import APP_ID, MemoryTable

SETTLES_MS = 15_000
# How long a history goes on at most after its last event: a lost recheck and a lost lease take a minute each.
TAIL_MS = 400_000

# By name: the `RTC_QUERY` of the functions. With `rooms` sweeps ask about the whole room.
MODES = {"queries": "on", "rooms": "on", "presence": "presence", "events": "off"}


class History:
    """A history: `found` counts by name; `settled_in_ms` is None where a crash or a lost event may take longer.

    `mode` is one of `MODES`.
    """

    def __init__(self, seed: int, *, mode: str = "queries", skew_ms: int = SKEW_MS) -> None:
        self._mode, self.query, self.skew_ms = mode, MODES[mode], skew_ms
        self._rng = random.Random(seed)  # noqa: S311 (no secret)
        self.model, self.clock, self.table = Model(self._rng), VirtualClock(), MemoryTable()
        self.settled_in_ms: int | None = None
        choose = self._rng.choice
        self._loss, self._fault, self._poll_ms = choose((0, 0, 0.1)), choose((0, 0, 0.02)), choose((10_000, 60_000))
        self._is_expired_deleted, self._is_nested = choose((True, False)), False
        self.vendor = Vendor(self.model)
        can = {"is_strict": not self._fault, "absent_is_error": self.vendor.absent_is_error}
        can |= {"has_lost": bool(self._loss or self._fault), "by_presence": self.query == "presence"}
        self.judge = Judge(self.model, self.clock, self.table, skew_ms, **can)
        self.found = self.judge.found
        self._outages: list[tuple[str, int, int]] = []
        self._actions: list[tuple[int, int, Callable[[], Any]]] = []
        self._instances: list[Instance] = []
        self._last_ms = max(event.at_ms for event in self.model.events)

    def run(self) -> "History":
        """Let it happen, and judge it."""
        for event in self.model.events:
            self._plan(event)
        targets: list[Target | Room] = [*map(_target, self.model.user_ids)] if self._loss or self._fault else []
        if self._mode == "rooms" or (self._mode == "presence" and self._rng.random() < 0.5):
            targets = [Room(APP_ID, ROOM)]
        while not self._on_instance(lambda instance: instance.watch(targets, 30 * 86_400)):
            pass
        for _ in range(self._rng.choice((0, 1, 2)) if self._fault else 0):
            since_ms = self._rng.choice(self.model.events).at_ms - self._rng.randint(0, 3_000)
            # Longer than the vendor's three tries of the last event.
            until_ms = min(since_ms + self._rng.choice((5_000, 60_000, HOUR_MS)), self._last_ms + 5_000)
            self._outages.append((self._rng.choice(("table", "queue")), since_ms, until_ms))
        self.after(self._rng.randint(0, self._poll_ms), self.poll)
        while self.clock.ms < self._last_ms + TAIL_MS and not self._is_over():
            self._next_action()
        self._judge_the_end()
        return self

    def after(self, delay_ms: int, action: Callable[..., None], **arguments: Any) -> None:
        """Do something after a delay."""
        self.found["actions"] += 1
        call: Callable[[], Any] = partial(action, **arguments)
        heapq.heappush(self._actions, (self.clock.ms + delay_ms, self.found["actions"], call))

    def let_others_in(self) -> None:
        """Now and then something else happens on another instance just before a write."""
        is_soon = self._actions and self._actions[0][0] < self.clock.ms + 1_000
        if self._fault and is_soon and not self._is_nested and self._rng.random() < 0.1:
            self._is_nested = True
            self._next_action()
            self._is_nested = False

    def fault_of(self, service: str) -> str | None:
        """How the next request fails, if it does; none fails after the last event."""
        if any(service == down and since <= self.clock.ms < until for down, since, until in self._outages):
            return "down"
        if not self._fault or self.clock.ms > self._last_ms or self._rng.random() > self._fault:
            return None
        return self._rng.choice(("down", "no answer", "crash"))

    def attempt(self, job: Callable[[Instance], object], pause_ms: int, tries: int) -> None:
        """Do a job on an instance, and again after a pause if it failed."""
        if not self._on_instance(job) and tries > 1:
            self.after(pause_ms, self.attempt, job=job, pause_ms=pause_ms, tries=tries - 1)

    def push(self, event: Event, text: str) -> None:
        """The vendor sends an event, three times at most until it is answered with 200."""

        def receive(instance: Instance) -> None:
            instance.said, now_ms = self.vendor.words_of(event), self.clock.ms
            try:
                is_done = instance.callbacks.receive(instance.callbacks.verified(text, now_ms), math.inf)
            except StreamStateError:
                is_done = False
            if is_done:
                instance.commit()
            else:
                instance.keep(text, now_ms)

        self.attempt(receive, 2_000, 3)

    def again(self, text: str, received_at_ms: int, said: Sequence[Said]) -> None:
        """A kept event comes from the retry queue."""

        def receive(instance: Instance) -> None:
            instance.said = said
            if not instance.callbacks.receive(instance.callbacks.verified(text, received_at_ms), math.inf):
                raise DeliveryFailed("Not done.")
            instance.commit()

        self.attempt(receive, 30_000, 40)

    def recheck(self, target: Target, due_ms: int) -> None:
        """A recheck comes from the retry queue."""

        def carry_out(instance: Any) -> None:
            if not instance.callbacks.recheck(target, due_ms, instance.lookup, math.inf):
                raise DeliveryFailed("Not done.")

        self.found["rechecks"] += 1
        self.attempt(carry_out, 30_000, 40)

    def poll(self) -> None:
        """A sweep of the watch list: few of them in a long pause, none in a day's."""
        request = SweepRequest(None, emits_all=False)
        self._on_instance(lambda instance: instance.sweep.run(request, math.inf, math.inf))
        pause_ms = max(self._poll_ms, min(600_000, self._last_ms - 30_000 - self.clock.ms))
        next_ms = self._actions[0][0] - HOUR_MS if self._actions else 0
        self.after(max(pause_ms, next_ms - self.clock.ms), self.poll)

    def call_api(self, user_id: str, max_age_seconds: int) -> None:
        """Somebody asks."""

        def call(instance: Instance) -> None:
            (outcome,) = instance.api.some([_target(user_id)], math.inf, max_age_seconds)
            # An answer that could not be stored is the vendor's own word, and the newest.
            if isinstance(outcome.answer, Answer) and not isinstance(outcome.merge, StreamStateError):
                self.judge.check(user_id, outcome.answer.record.state.values)

        self._on_instance(call)

    def _plan(self, event: Event) -> None:
        """Send an event soon or late, once or twice, or lose it; and let somebody ask at about that time."""
        rng, since_start_ms = self._rng, event.at_ms - START_MS
        if rng.random() < 0.4:
            user_id, max_age_seconds = event.user_id or self.model.user_ids[0], rng.choice((0, 0, 30))
            delay_ms = since_start_ms + rng.randint(-4_000, 9_000)
            self.after(delay_ms, self.call_api, user_id=user_id, max_age_seconds=max_age_seconds)
        text = self.vendor.text(event)
        for _ in range(0 if rng.random() < self._loss else rng.choice((1,) * 9 + (2,))):
            delay_ms = rng.randint(0, rng.choice((600,) * 4 + (30_000,)))
            self.after(since_start_ms + delay_ms, self.push, event=event, text=text)
            self._last_ms = max(self._last_ms, event.at_ms + delay_ms)

    def _judge_the_end(self) -> None:
        self.judge.count_undelivered()
        right_since_ms = self.judge.right_since_ms
        if self.query != "off" and right_since_ms is None:
            self.found["never settled"] += 1
        elif self.query != "off" and not self._fault and (not self._loss or self._poll_ms == 10_000):
            self.settled_in_ms = max(0, (right_since_ms or 0) - self._last_ms)
            self.found["settled late"] += self.settled_in_ms > SETTLES_MS

    def _is_over(self) -> bool:
        """Whether nothing more can come of it."""
        if self.clock.ms < self._last_ms + 20_000 or len(self._actions) > 1:
            return False
        is_listed = any("undelivered" in (self.judge.item(user_id) or {}) for user_id in self.model.user_ids)
        return not is_listed and not (self.query != "off" and self.judge.right_since_ms is None)

    def _next_action(self) -> None:
        at_ms, _, action = heapq.heappop(self._actions)
        self.clock.ms = max(self.clock.ms, at_ms)
        self.judge.look_if_expired()
        if self._is_expired_deleted:
            self.table.items[PARTITION] = {
                user: dict(item) for user in self.model.user_ids if (item := self.judge.item(user))
            }
        action()
        self.judge.look()

    def _on_instance(self, job: Callable[[Instance], object]) -> bool:
        """Do a job on an instance that is free; False if it failed or crashed."""
        index = self._rng.randrange(3)
        instance = self._instances.pop(index) if index < len(self._instances) else Instance(self)
        try:
            job(instance)
        except (Crash, StreamStateError):
            return False
        finally:
            instance.said = ()
            if not instance.is_dead:
                self._instances.append(instance)
        return True


def _target(user_id: str) -> Target:
    return Target(APP_ID, ROOM, user_id)
