"""One instance of the functions on a virtual clock: the services, and their requests, each of which can fail."""

import contextlib
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from botocore.exceptions import ClientError

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import Table
from stream_state.adapters.watch_list import WatchList
from stream_state.clock import Clock
from stream_state.domain import merging
from stream_state.domain.observations import Observations, Presence, QueryResult, logged_in, offline, online
from stream_state.domain.states import State
from stream_state.domain.targets import Room, Target
from stream_state.errors import DeliveryFailed, RtcUnavailable, TargetNotFound
from stream_state.services import asking, callbacks, delivery, lookup, recording, rooms, sweep
from stream_state.services.recording import Recorder
from tests.integration.truth_model import KEY, START_MS, Said
from tests.unit.memory import APP_ID, TABLE

MOST_REMEMBERED = 50


class Crash(BaseException):
    """The end of an instance in the middle of its work."""


class VirtualClock(Clock):
    ms = START_MS

    def now(self) -> float:
        return self.ms / 1000

    def now_ms(self) -> int:
        return self.ms

    monotonic = now

    def sleep(self, seconds: float) -> None:
        self.ms += round(seconds * 1000)


class InlinePool(Executor):
    def __init__(self, size: int) -> None: ...

    def submit(self, function: Callable[..., Any], /, *args: Any, **more: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(function(*args, **more))
        return future


class Remembered:
    """`state_of`, once for observations that several records share, as those before and after a write do."""

    def __init__(self, state_of: Callable[[Observations, int], State]) -> None:
        self._state_of = state_of
        self._states: dict[int, tuple[Observations, State]] = {}

    def __call__(self, observations: Observations, skew_ms: int) -> State:
        if (found := self._states.get(id(observations))) is None:
            if len(self._states) > MOST_REMEMBERED:
                self._states.clear()
            found = self._states[id(observations)] = observations, self._state_of(observations, skew_ms)
        return found[1]


@contextlib.contextmanager
def on_one_thread() -> Iterator[None]:
    """The services take one step after another, without threads, logs and metrics."""
    logging.disable(logging.CRITICAL)
    with contextlib.ExitStack() as stack, contextlib.redirect_stdout(io.StringIO()):
        stack.callback(logging.disable, logging.NOTSET)
        for module in (asking, callbacks, recording, delivery, rooms):
            stack.enter_context(patch.object(module, "ThreadPoolExecutor", InlinePool))
        stack.enter_context(patch.object(merging, "state_of", Remembered(vars(merging)["state_of"])))
        yield


class Instance:
    """The services, and what their clients do: `world` has the table, the queues and the vendor."""

    def __init__(self, world: Any) -> None:
        self._world = world
        self.is_dead, self.calls_made = False, 0
        # The words that count once they are stored.
        self.said: Sequence[Said] = ()
        here: Any = self
        keys: Any = SimpleNamespace(keys=lambda: (KEY,))
        clock, query = world.clock, world.query
        table = Table(here, TABLE, clock)
        recheck_after_ms = None if query == "off" else 6_000
        recorder = Recorder(StateStore(table, world.skew_ms, recheck_after_ms, delivers=True), here)
        watches, api_store = WatchList(table), StateStore(table, world.skew_ms, recheck_after_ms)
        sender, self.watch = delivery.Delivery(here, recorder), watches.add
        self.callbacks = callbacks.Callbacks(keys, sender, watches, [APP_ID], auto_watch=True)
        self.lookup = lookup.Lookup(here, recorder, query)
        self.sweep = sweep.Sweep(self.lookup, sender, watches)
        self.api = lookup.Lookup(here, Recorder(api_store, here), query)

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        """A request to the table, as boto3 names it."""
        work = getattr(self._world.table, operation)
        if operation != "put_item":
            return partial(self._request, "table", work)
        self._world.let_others_in()

        def write(**parameters: Any) -> Any:
            answer = work(**parameters)
            self.commit(parameters["Item"].get("user_id", {}).get("S"))
            return answer

        return partial(self._request, "table", write)

    def send(self, messages: Sequence[Mapping[str, Any]], deadline: float) -> list[str | DeliveryFailed]:
        try:
            sent: list[str | DeliveryFailed] = self._request(
                "queue", lambda: [self._world.judge.deliver(message) for message in messages]
            )
        except DeliveryFailed as error:
            return [error] * len(messages)
        return sent

    def keep(self, text: str, received_at_ms: int) -> None:
        event = {"text": text, "received_at_ms": received_at_ms, "said": self.said}
        self._request("queue", self._world.after, delay_ms=3_000, action=self._world.again, **event)

    def recheck(self, target: Target, due_ms: int) -> None:
        asked = {"target": target, "due_ms": due_ms}
        self._request("queue", self._world.after, delay_ms=6_000, action=self._world.recheck, **asked)

    def stream_state(self, target: Target, deadline: float, **options: Any) -> QueryResult:
        sent_at_ms = self._world.clock.ms
        media, self.said = self._request("vendor", lambda: self._world.vendor.answer(target.user_id, sent_at_ms))
        if media is None:
            raise TargetNotFound("Unknown.", observed_at_ms=sent_at_ms)
        return QueryResult(media, sent_at_ms, "request-1")

    def online_users(self, room: Room, deadline: float, **options: Any) -> Presence:
        return self._presence(self._world.model.user_ids, offline(self._world.clock.ms))

    def users_property(self, room: Room, user_ids: Sequence[str], deadline: float, **options: Any) -> Presence:
        return self._presence(user_ids, {})

    def _presence(self, user_ids: Sequence[str], others: Observations) -> Presence:
        """`others` is empty if the call also says when each user's connection began."""
        sent_at_ms, vendor = self._world.clock.ms, self._world.vendor
        logins, said = self._request("vendor", lambda: vendor.presence(user_ids, sent_at_ms))
        self.said = [*self.said, *said]
        there = {user_id: login_ms for user_id, login_ms in logins.items() if login_ms is not None}
        if others:
            return Presence(dict.fromkeys(there, online(sent_at_ms)), others, "request-1")
        users = {user_id: logged_in(sent_at_ms, login_ms) for user_id, login_ms in there.items()}
        return Presence({**dict.fromkeys(user_ids, offline(sent_at_ms)), **users}, {}, "request-1")

    def commit(self, user_id: str | None = None) -> None:
        """The words, or those about one user, are stored."""
        self._world.judge.hear([word for word in self.said if user_id in (None, word.user_id)])
        self.said = [word for word in self.said if user_id not in (None, word.user_id)]

    def _request(self, service: str, work: Callable[..., Any], **parameters: Any) -> Any:
        fault = "crash" if self.is_dead else self._world.fault_of(service)
        if fault is None:
            return work(**parameters)
        if fault == "no answer":
            work(**parameters)
        if fault == "crash":
            self.is_dead = True
            raise Crash
        if service == "table":
            # The answer of a call is not written a second time; an event comes again.
            self.said = [word for word in self.said if not word.asked_ms]
            raise ClientError({"Error": {"Code": "InternalServerError"}}, "AnyOperation")
        raise DeliveryFailed("SQS did not accept it.") if service == "queue" else RtcUnavailable("Down.")
