"""The shared limit: what it lets through, who comes first, and what happens when the table does not answer."""

import bisect
import functools
import heapq
import io
import itertools
import random
import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_state import limit_item, local_limiter, quota
from stream_state.errors import QuotaExceeded
from stream_state.local_limiter import LocalLimiter
from stream_state.quota import Function, Limiter, TableLimiter
from stream_state.settings import Settings, SettingsError

_Caller = quota._Caller
EPOCH = 1_790_000_000.25
FAR = 1e9


class World:
    """Time that tests own: threads take turns, and only sleeping lets it pass."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._order = itertools.count()

    def caller(self, deadline_us: int) -> quota._Caller:
        """A caller that waits in this time."""
        return _Caller(deadline_us, WorldEvent(self))  # type: ignore[arg-type] # what is used of an event

    def clock(self) -> float:
        return self.now

    def wall_clock(self) -> float:
        return EPOCH + self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.slept.append(seconds)
        self._pass(seconds)

    def _pass(self, seconds: float, mine: threading.Event | None = None) -> None:
        mine = mine or threading.Event()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._order), mine))
        self._wake_next()
        mine.wait()

    def _wake_next(self) -> None:
        if self._sleepers:
            self.now, _, event = heapq.heappop(self._sleepers)
            event.set()

    def _wake(self, event: threading.Event) -> None:
        self._sleepers = [(self.now if one is event else at, order, one) for at, order, one in self._sleepers]
        heapq.heapify(self._sleepers)

    def run(self, *jobs: Callable[[], object]) -> None:
        """Run jobs side by side until all have ended."""

        def begin(job: Callable[[], object], event: threading.Event) -> None:
            event.wait()
            try:
                job()
            finally:
                self._wake_next()

        threads = []
        for job in jobs:
            event = threading.Event()
            heapq.heappush(self._sleepers, (self.now, next(self._order), event))
            threads.append(threading.Thread(target=begin, args=(job, event)))
        for thread in threads:
            thread.start()
        self._wake_next()
        for thread in threads:
            thread.join()


class WorldEvent:
    """An event whose waiting takes no real time."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._waiting: threading.Event | None = None
        self._is_set = False

    def wait(self, seconds: float) -> None:
        if not self._is_set:
            self._waiting = threading.Event()
            self._world._pass(seconds, self._waiting)
            self._waiting = None

    def set(self) -> None:
        self._is_set = True
        if self._waiting:
            self._world._wake(self._waiting)


class FakeTable:
    """The two calls that the limiter makes, on one item; a queue of errors is raised first."""

    def __init__(self, world: World, latency: Callable[[], float] = lambda: 0.0) -> None:
        self.item: dict[str, dict[str, str]] = {}
        self.errors: list[Exception] = []
        self.always: Exception | None = None
        self.calls: Counter[str] = Counter()
        self._world = world
        self._latency = latency
        self._is_true = _is_true

    def update_item(self, **call: Any) -> dict[str, Any]:
        self.calls["write"] += 1
        if latency := self._latency():
            self._world._pass(latency)
        self._fail()
        assert call["TableName"] == "table"
        assert call["Key"] == {"pk": {"S": "limiter"}, "sk": {"S": "rtc"}}
        item = {name: int(value["N"]) for name, value in self.item.items()}
        values = {name: int(value["N"]) for name, value in call["ExpressionAttributeValues"].items()}
        used = set(re.findall(r":\w+", f"{call['UpdateExpression']} {call['ConditionExpression']}"))
        assert used == values.keys()
        if not all(
            any(self._is_true(term, item, values) for term in clause.split(" OR "))
            for clause in call["ConditionExpression"].split(" AND ")
        ):
            self.calls["refused"] += 1
            response = {"Error": {"Code": "ConditionalCheckFailedException"}, "Item": dict(self.item)}
            raise ClientError(response, "UpdateItem")
        name, _, value = call["UpdateExpression"].removeprefix("SET ").partition(" = ")
        new = sum(values[part] if part.startswith(":") else item[part] for part in value.split(" + "))
        self.item[name] = {"N": str(new)}
        return {"Attributes": {name: {"N": str(new)}}}

    def get_item(self, **call: Any) -> dict[str, Any]:
        self.calls["read"] += 1
        self._fail()
        return {"Item": dict(self.item)} if self.item else {}

    def hold_until(self, seconds: int) -> None:
        self.item["hold_until"] = {"N": str(seconds)}

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        if self.always:
            raise self.always


def _is_true(term: str, item: Mapping[str, int], values: Mapping[str, int]) -> bool:
    if missing := re.search(r"attribute_not_exists\((\w+)\)", term):
        return missing[1] not in item
    name, operator, value = term.strip("()").split(" ")
    if name not in item:
        return False
    left, right = item[name], values[value]
    return {"<": left < right, "<=": left <= right, ">=": left >= right}[operator]


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "made by the test"}}, "UpdateItem")


def make_settings(qps: float = 50, burst: int = 5, mode: str = "closed", table: str = "table") -> Settings:
    return Settings.from_environment(
        {
            "RTC_APP_IDS": "app",
            "RTC_QPS": str(qps),
            "RTC_BURST": str(burst),
            "QUOTA_FAILURE_MODE": mode,
            "TABLE_NAME": table,
        }
    )


def make_limiter(world: World, table: FakeTable, function: Function = "api", **options: Any) -> TableLimiter:
    jitter = options.pop("jitter", lambda low, high: (low + high) / 2)
    return TableLimiter(
        table,  # type: ignore[arg-type] # the two calls of the client that are used
        make_settings(**options),
        function,
        clock=world.clock,
        wall_clock=world.wall_clock,
        sleep=world.sleep,
        jitter=jitter,
    )


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr(quota, "_Caller", world.caller)
    return world


@pytest.fixture
def table(world: World) -> FakeTable:
    return FakeTable(world)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    recorded: list[tuple[Any, ...]] = []
    for module in (quota, local_limiter):
        monkeypatch.setattr(module, "record", lambda *args, **dimension: recorded.append((*args, *dimension.items())))
    return recorded


def waits(world: World, limiter: Limiter, patience: float = FAR) -> float:
    """Seconds that a caller with this patience waits for its slot."""
    started = world.now
    limiter.acquire(world.now + patience)
    return world.now - started


# What the schedule lets through


def test_a_pause_allows_a_burst_and_then_the_rate(world: World, table: FakeTable) -> None:
    limiter = make_limiter(world, table, qps=50, burst=3)

    assert [waits(world, limiter) for _ in range(5)] == pytest.approx([0, 0, 0, 0.02, 0.02])


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["api", "task", "sweep"]),
        st.integers(0, 1),
        st.integers(0, 150),
        st.sampled_from([0.0, 0.03, 0.5, FAR]),
    ),
    max_size=40,
)


@given(calls=CALLS, qps=st.sampled_from([1, 5, 7, 50, 60]), burst=st.sampled_from([1, 2, 5, 60]))
@settings(deadline=None, max_examples=200)
def test_no_window_holds_more_than_the_burst_and_its_share_of_the_rate(
    calls: list[tuple[Function, int, int, float]], qps: float, burst: int
) -> None:
    # Given processes that share a table, and callers whose sleep does not keep others from asking meanwhile
    world = World()
    table = FakeTable(world)
    limiters = {key: make_limiter(world, table, key[0], qps=qps, burst=burst) for key in {call[:2] for call in calls}}
    slots: list[float] = []
    refusals: list[QuotaExceeded] = []
    for function, process, pause_ms, patience in calls:
        world.now += pause_ms / 1000
        limiter = limiters[function, process]
        asked_at = world.now
        # When each asks for a slot
        try:
            limiter.acquire(asked_at + patience)
        except QuotaExceeded as error:
            refusals.append(error)
            # Then a sweep has waited as long as it could
            waited = patience if function == "sweep" else 0
            assert world.now == pytest.approx(asked_at + waited, abs=1e-5)
            continue
        # And nobody gets one after the deadline
        assert world.now <= asked_at + patience + 1e-5
        slots.append(world.now)
        if function != "sweep":
            world.now = asked_at
    assert all((error.retry_after_seconds or 0) >= 0 for error in refusals)
    # And no window holds more than the law allows
    slots.sort()
    for first, last in itertools.combinations(range(len(slots)), 2):
        assert last - first + 1 <= burst + (slots[last] - slots[first]) * qps + 1e-3


def test_slots_come_in_the_order_of_asking(world: World, table: FakeTable) -> None:
    limiters = [make_limiter(world, table, "api"), make_limiter(world, table, "task")]
    slots = []
    for number in range(20):
        slots.append(waits(world, limiters[number % 2]))
        world.now = 0

    assert slots == sorted(slots)
    assert slots[-1] == pytest.approx(15 * 0.02, abs=1e-5)


def test_a_denial_costs_one_write_and_tells_when_to_come_back(
    world: World, table: FakeTable, metrics: list[tuple[Any, ...]]
) -> None:
    # Given all slots of the next two seconds taken
    limiter = make_limiter(world, table, qps=10, burst=1)
    for _ in range(20):
        waits(world, limiter)
        world.now = 0
    table.calls.clear()
    metrics.clear()
    # When a caller comes who waits half a second at most
    with pytest.raises(QuotaExceeded) as denied:
        limiter.acquire(0.5)
    # Then it is refused at once
    assert table.calls == {"write": 1, "refused": 1}
    assert world.now == 0
    assert metrics == [("QuotaDenied",)]
    # And gets a slot if it comes back when it was told to
    assert denied.value.retry_after_seconds == pytest.approx(1.5, abs=1e-5)
    world.now += denied.value.retry_after_seconds + 1e-5
    assert waits(world, limiter, 0.5) == pytest.approx(0.5, abs=1e-4)


@pytest.mark.parametrize("function", ["api", "task", "sweep"])
def test_a_process_alone_needs_at_most_one_write_for_a_slot(world: World, table: FakeTable, function: Function) -> None:
    limiter = make_limiter(world, table, function)

    for _ in range(200):
        waits(world, limiter)

    assert table.calls == {"write": 200}


def test_after_a_pause_that_nobody_expected_a_wrong_guess_costs_one_more_write(world: World, table: FakeTable) -> None:
    # Given a process that last saw another one use the item
    ours, other = make_limiter(world, table), make_limiter(world, table)
    for limiter in (ours, other, ours):
        waits(world, limiter)
    table.calls.clear()
    # When all have paused
    world.now += 10
    waits(world, ours)
    # Then it guesses wrong once, and not again
    assert table.calls == {"write": 2, "refused": 1}
    world.now += 10
    waits(world, ours)
    assert table.calls == {"write": 3, "refused": 1}


def test_waits_are_recorded_by_function(world: World, table: FakeTable, metrics: list[tuple[Any, ...]]) -> None:
    limiter = make_limiter(world, table, "task", qps=50, burst=1)
    waits(world, limiter)
    waits(world, limiter)

    recorded = [metric for metric in metrics if metric[0] == "QuotaWait"]
    assert [metric[1] for metric in recorded] == pytest.approx([0, 20], abs=0.01)
    assert {metric[2:] for metric in recorded} == {("Milliseconds", ("function", "task"))}
    assert Counter(metric[0] for metric in metrics) == {"QuotaGranted": 2, "QuotaWait": 2}


def test_a_slot_that_is_confirmed_late_is_let_go_once(world: World, table: FakeTable) -> None:
    # Given a table that stalls for a moment
    limiter = make_limiter(world, table)
    stalls = iter([0.5, 0.001])
    table._latency = lambda: next(stalls)
    # Then the caller takes another slot
    assert waits(world, limiter) == pytest.approx(0.501)
    assert table.calls == {"write": 2}
    # But if it is always slow, the next one serves
    table._latency = lambda: 0.5
    assert waits(world, limiter) == pytest.approx(1)
    assert table.calls == {"write": 4}


# Who comes first


def test_a_sweep_never_reserves_more_than_one_slot_ahead(world: World, table: FakeTable) -> None:
    # Given 3 sweeps in want of slots for 20 s, and a lookup now and then
    ahead: list[float] = []

    def sweep() -> None:
        limiter = make_limiter(world, table, "sweep")
        last_write = 0.0
        write = limiter._item._update

        def watched(*args: Any) -> Any:
            nonlocal last_write
            last_write = world.now
            return write(*args)

        limiter._item._update = watched  # type: ignore[method-assign] # to know when each slot was reserved
        while world.now < 20:
            limiter.acquire(FAR)
            ahead.append(world.now - last_write)

    def look_up() -> None:
        limiter = make_limiter(world, table, "api")
        while world.now < 20:
            limiter.acquire(FAR)
            world.sleep(0.3)

    world.run(sweep, sweep, sweep, look_up)

    assert len(ahead) >= 0.97 * 20 * (50 - 1 / 0.3)
    assert max(ahead) <= 0.02 + 1e-5


@pytest.mark.parametrize(("latency_ms", "sweeps"), [((3, 12), 8), ((3, 12), 1), ((10, 40), 8)])
def test_lookups_come_first_and_sweeps_get_the_rest(world: World, latency_ms: tuple[int, int], sweeps: int) -> None:
    # Given sweeps of several threads that use all they can get, and 5 lookups a second, for a minute
    draw = random.Random(7)  # noqa: S311 - the same course in each run
    table = FakeTable(world, lambda: draw.uniform(*latency_ms) / 1000)
    seconds = 60
    slots: list[float] = []
    by_sweep: Counter[int] = Counter()
    lookup_waits: list[float] = []

    def sweep(number: int, limiter: TableLimiter) -> None:
        while world.now < seconds:
            limiter.acquire(FAR)
            slots.append(world.now)
            by_sweep[number] += 1

    def look_up() -> None:
        limiter = make_limiter(world, table, "api")
        while world.now < seconds:
            world._pass(draw.expovariate(5))
            lookup_waits.append(waits(world, limiter, 2))
            slots.append(world.now)

    limiters = [make_limiter(world, table, "sweep", jitter=draw.uniform) for _ in range(sweeps)]
    threads = [functools.partial(sweep, number, limiter) for number, limiter in enumerate(limiters) for _ in range(4)]
    # When they run side by side
    world.run(look_up, *threads)
    # Then the lookups wait little, and none is refused
    assert sorted(lookup_waits)[int(len(lookup_waits) * 0.99)] < 0.2
    # And the sweeps get at least 97 % of what is left, each its share
    assert by_sweep.total() >= 0.97 * (50 * seconds - len(lookup_waits))
    assert min(by_sweep.values()) >= by_sweep.total() / sweeps / 2
    # And no second holds more than the schedule allows
    slots.sort()
    assert max(bisect.bisect_right(slots, at + 1) - place for place, at in enumerate(slots)) <= 55 + 1
    # And nothing spins
    assert table.calls["write"] <= 3 * len(slots)


# Many threads of a process


def test_threads_that_wait_share_blocks_of_at_most_the_burst(world: World, table: FakeTable) -> None:
    # Given a table that takes a moment to answer
    table._latency = lambda: 0.01
    limiter = make_limiter(world, table, qps=50, burst=5)
    slots: list[float] = []

    def call() -> None:
        limiter.acquire(FAR)
        slots.append(world.now)

    # When 41 threads ask at once
    world.run(*[call] * 41)
    # Then the first has a write of its own, and the others one for each five
    assert table.calls == {"write": 1 + 8}
    assert max(slots) == pytest.approx((41 - 5) * 0.02, abs=0.011)


def test_a_block_holds_no_slot_that_comes_too_late_for_its_thread(world: World, table: FakeTable) -> None:
    # Given ten threads who wait 0.1 s at most, at 10 calls a second and a burst of 3
    limiter = make_limiter(world, table, qps=10, burst=3)
    table._latency = lambda: 0.001
    outcomes: Counter[str] = Counter()

    def call() -> None:
        try:
            limiter.acquire(0.15)
            outcomes["granted"] += 1
        except QuotaExceeded:
            outcomes["refused"] += 1

    # When they ask at once
    world.run(*[call] * 10)
    # Then those are served whose slot is in time, and no slot is lost
    assert outcomes == {"granted": 4, "refused": 6}
    assert int(table.item["next_us"]["N"]) == pytest.approx((EPOCH + 0.4) * 1e6, abs=2000)
    # And one write denies all others
    assert table.calls["write"] <= 4


def test_a_thread_gives_up_at_its_deadline_while_another_still_asks(world: World, table: FakeTable) -> None:
    limiter = make_limiter(world, table)
    table._latency = lambda: 0.15
    errors: list[float] = []

    def impatient() -> None:
        with pytest.raises(QuotaExceeded):
            limiter.acquire(0.1)
        errors.append(world.now)

    world.run(lambda: limiter.acquire(FAR), impatient)

    assert errors == [pytest.approx(0.1)]
    assert waits(world, limiter) == pytest.approx(0.15)


def test_an_error_of_one_thread_does_not_stop_the_others(world: World, table: FakeTable) -> None:
    table.errors = [RuntimeError("made by the test")]
    table._latency = lambda: 0.01
    limiter = make_limiter(world, table)
    done: list[float] = []

    def failing() -> None:
        with pytest.raises(RuntimeError):
            limiter.acquire(FAR)

    world.run(failing, lambda: done.append(waits(world, limiter)))

    assert len(done) == 1


# Stopping all calls


@pytest.mark.parametrize("function", ["api", "sweep"])
def test_a_hold_of_one_process_stops_the_others_until_it_ends(
    world: World, table: FakeTable, function: Function
) -> None:
    ours, other = make_limiter(world, table, "task"), make_limiter(world, table, function)
    waits(world, other)
    ours.hold(10)

    assert table.item["hold_until"] == {"N": "1790000011"}
    assert waits(world, other) == pytest.approx(10.75, abs=0.1)
    assert waits(world, ours) <= 0.1


def test_a_caller_who_cannot_wait_for_the_end_of_a_hold_is_told_when_it_ends(world: World, table: FakeTable) -> None:
    limiter = make_limiter(world, table)
    table.hold_until(1_790_000_100)

    with pytest.raises(QuotaExceeded, match="on hold") as denied:
        limiter.acquire(2)

    assert denied.value.retry_after_seconds == pytest.approx(100 - 0.25 - 2)
    assert table.calls == {"write": 1, "refused": 1}


def test_a_longer_hold_stays_and_none_is_longer_than_a_minute(world: World, table: FakeTable) -> None:
    limiter, other = make_limiter(world, table), make_limiter(world, table)
    limiter.hold(3600)
    other.hold(5)
    limiter.hold(5)

    assert table.item["hold_until"] == {"N": "1790000061"}
    assert table.calls == {"write": 2, "refused": 1}


def test_a_hold_that_an_operator_lifts_ends_within_seconds(world: World, table: FakeTable) -> None:
    limiter = make_limiter(world, table, "sweep")
    table.hold_until(1_790_003_600)

    def lift() -> None:
        world.sleep(60)
        del table.item["hold_until"]

    world.run(lift, lambda: limiter.acquire(FAR))

    assert 60 <= world.now <= 60 + quota.MAX_PAUSE_SECONDS
    assert table.calls["write"] <= 1 + 65 / quota.MAX_PAUSE_SECONDS


def test_a_caller_who_sleeps_long_for_its_slot_notices_a_hold(world: World, table: FakeTable) -> None:
    # Given a caller whose slot is 3 s ahead
    limiter = make_limiter(world, table, qps=1, burst=1)
    for _ in range(3):
        limiter.acquire(FAR)
        world.now = 0
    table.calls.clear()

    def stop() -> None:
        world.sleep(1)
        table.hold_until(1_790_000_010)

    # When an operator stops all calls meanwhile
    slots: list[float] = []
    world.run(stop, lambda: slots.append(waits(world, limiter)))
    # Then it looks before it calls, with one read, and waits for the end
    assert slots[0] >= 9.75
    assert table.calls["read"] == 1


def test_a_slot_stays_valid_if_a_hold_cannot_be_looked_up(world: World, table: FakeTable) -> None:
    limiter = make_limiter(world, table, qps=1, burst=1)
    for _ in range(3):
        limiter.acquire(FAR)
        world.now = 0

    def fail() -> None:
        world.sleep(1)
        table.always = refusal("InternalServerError")

    slots: list[float] = []
    world.run(fail, lambda: slots.append(waits(world, limiter)))

    assert slots == [pytest.approx(3, abs=1e-4)]


def test_a_hold_that_cannot_be_written_is_said_and_does_no_harm(
    world: World, table: FakeTable, logs: io.StringIO
) -> None:
    table.errors = [refusal("InternalServerError")]

    make_limiter(world, table).hold(5)

    assert "could not be written" in logs.getvalue()


# When the table does not answer

DOWN = [
    refusal("InternalServerError"),
    refusal("AccessDeniedException"),
    refusal("ResourceNotFoundException"),
    EndpointConnectionError(endpoint_url="https://dynamodb.test"),
    ReadTimeoutError(endpoint_url="https://dynamodb.test"),
]


@pytest.mark.parametrize(
    "code", ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"]
)
def test_a_throttled_item_is_a_denial(world: World, table: FakeTable, code: str) -> None:
    # Given a table that throttles for a moment
    limiter = make_limiter(world, table, mode="open")
    table.errors = [refusal(code)] * 3
    # Then a caller with time waits
    assert 0.5 <= waits(world, limiter, 10) <= 3
    assert table.calls == {"write": 4}
    # And one without is refused, also where an outage would let it through
    table.always = refusal(code)
    with pytest.raises(QuotaExceeded, match="throttles") as denied:
        limiter.acquire(world.now + 0.1)
    assert denied.value.retry_after_seconds == pytest.approx(0.3, abs=1e-5)


def test_a_failure_that_passes_costs_one_more_write(world: World, table: FakeTable) -> None:
    table.errors = DOWN[:1]

    assert waits(world, make_limiter(world, table)) == 0
    assert table.calls == {"write": 2}


@pytest.mark.parametrize("error", DOWN, ids=limit_item.error_code)
@pytest.mark.parametrize("function", ["api", "task"])
def test_an_outage_refuses_all_who_wait(
    world: World, table: FakeTable, function: Function, error: Exception, logs: io.StringIO
) -> None:
    table.always = error
    table._latency = lambda: 1
    limiter = make_limiter(world, table, function)
    retry_after: list[float | None] = []

    def call() -> None:
        with pytest.raises(QuotaExceeded, match="does not answer") as denied:
            limiter.acquire(25)
        retry_after.append(denied.value.retry_after_seconds)

    world.run(*[call] * 8)

    assert retry_after == [5] * 8
    assert table.calls == {"write": 2}
    assert limit_item.error_code(error) in logs.getvalue()


def test_a_sweep_outlasts_an_outage_and_is_refused_only_at_its_deadline(world: World, table: FakeTable) -> None:
    limiter = make_limiter(world, table, "sweep")
    table.always = DOWN[3]
    with pytest.raises(QuotaExceeded):
        limiter.acquire(60)
    assert world.now == pytest.approx(60, abs=1e-4)
    assert table.calls["write"] <= 2 + 60 / 5

    def recover() -> None:
        world.sleep(7)
        table.always = None

    world.run(recover, lambda: limiter.acquire(FAR))
    assert world.now <= 60 + 7 + 5 + 0.01


def test_an_outage_leaves_a_tenth_of_the_rate_where_that_is_chosen(
    world: World, table: FakeTable, metrics: list[tuple[Any, ...]]
) -> None:
    # Given an outage
    table.always = DOWN[4]
    limiter = make_limiter(world, table, qps=50, mode="open")
    # Then each instance lets a tenth of the rate through, and does not ask for every call
    for _ in range(20):
        waits(world, limiter)
    assert world.now == pytest.approx(19 / 5)
    assert table.calls == {"write": 2}
    assert Counter(metric[0] for metric in metrics) == {"QuotaGranted": 20, "QuotaWait": 20}
    # And it comes back to the table when that answers
    table.always = None
    world.now += 5
    for _ in range(5):
        assert waits(world, limiter) == 0
    assert table.calls == {"write": 7}


def test_a_hold_holds_during_an_outage_too(world: World, table: FakeTable) -> None:
    table.always = DOWN[0]
    limiter = make_limiter(world, table, mode="open")
    limiter.hold(10)

    assert 10 <= waits(world, limiter) < 11


def test_an_item_that_never_agrees_is_not_asked_without_end(world: World, table: FakeTable) -> None:
    # Given a hold that somebody typed as text: no comparison with a number is ever true
    table._is_true = lambda *args: False
    # Then a caller gives up at its deadline, after few writes
    with pytest.raises(QuotaExceeded):
        make_limiter(world, table).acquire(25)
    assert world.now == pytest.approx(25, abs=1e-4)
    assert table.calls["write"] < 80


# Making one


def test_it_is_made_from_settings_with_short_time_outs_and_a_single_try(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"DEFAULT_REGION": "eu-west-1", "ACCESS_KEY_ID": "unit", "SECRET_ACCESS_KEY": "unit"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)

    config = TableLimiter.from_settings(make_settings(), "sweep")._item._client.meta.config

    assert config.connect_timeout <= 1
    assert config.read_timeout <= 1
    assert config.retries["total_max_attempts"] == 1


def test_it_cannot_be_made_without_a_table() -> None:
    with pytest.raises(SettingsError, match="TABLE_NAME"):
        TableLimiter.from_settings(make_settings(table=""), "api")


# The local one


def test_the_local_limiter_paces_refuses_and_holds(world: World) -> None:
    limiter = LocalLimiter(10, 2, world.clock, world.sleep)

    assert [waits(world, limiter) for _ in range(4)] == pytest.approx([0, 0, 0.1, 0.1])
    with pytest.raises(QuotaExceeded) as denied:
        limiter.acquire(world.now + 0.04)
    assert denied.value.retry_after_seconds == pytest.approx(0.06)
    limiter.hold(5)
    assert waits(world, limiter) == pytest.approx(5)
    assert waits(world, limiter) == pytest.approx(0.1)
