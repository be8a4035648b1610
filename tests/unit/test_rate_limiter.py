"""The rate limiter: its schedule, the order of callers, holds, and a table that fails."""

import bisect
import functools
import heapq
import io
import itertools
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ReadTimeoutError
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from stream_state.adapters import aws, rate_limiter
from stream_state.adapters.rate_limiter import OWN_LIMITS, Function, RateLimiter
from stream_state.adapters.table import RESERVE_SECONDS, Table
from stream_state.clock import CLOCK, Clock
from stream_state.errors import QuotaExceeded
from stream_state.settings import Settings, SettingsError
from tests.unit.memory import MemoryTable

EPOCH = 1_790_000_000.25
FAR = 1e9
SETTINGS = Settings.from_environment({"RTC_APP_IDS": "app", "TABLE_NAME": "states"})


class Turns(Clock):
    """Time that tests own: threads take turns, and only sleeping lets it pass. Jitter is half way unless drawn."""

    def __init__(self, draw: random.Random | None = None) -> None:
        self.seconds = 0.0
        self._draw = draw
        self._sleepers: list[tuple[float, int, threading.Event]] = []
        self._order = itertools.count()

    def now(self) -> float:
        return EPOCH + self.seconds

    def monotonic(self) -> float:
        return self.seconds

    def jitter(self, low: float, high: float) -> float:
        return self._draw.uniform(low, high) if self._draw else (low + high) / 2

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        woken = self._sleep_from_now(seconds)
        self._wake_next()
        woken.wait()

    def run(self, *jobs: Callable[[], object]) -> None:
        """Run jobs side by side until all have ended."""

        def begin(job: Callable[[], object], woken: threading.Event) -> None:
            woken.wait()
            try:
                job()
            finally:
                self._wake_next()

        threads = [threading.Thread(target=begin, args=(job, self._sleep_from_now(0))) for job in jobs]
        for thread in threads:
            thread.start()
        self._wake_next()
        for thread in threads:
            thread.join()

    def _sleep_from_now(self, seconds: float) -> threading.Event:
        woken = threading.Event()
        heapq.heappush(self._sleepers, (self.seconds + seconds, next(self._order), woken))
        return woken

    def _wake_next(self) -> None:
        if self._sleepers:
            self.seconds, _, woken = heapq.heappop(self._sleepers)
            woken.set()


class SlowTable(MemoryTable):
    """A table that takes its time, counts its calls, and raises a queue of errors first."""

    def __init__(self, clock: Clock, latency: Callable[[], float] = lambda: 0.0) -> None:
        super().__init__()
        self.errors: list[Exception] = []
        self.always: Exception | None = None
        self.calls: Counter[str] = Counter()
        self.latency = latency
        self.written_at = self.read_seconds = 0.0
        self._clock = clock

    @property
    def item(self) -> dict[str, Any]:
        """The item of the rate limiter."""
        return self.items["limiter"]["rtc"]

    def hold(self, until: int) -> None:
        """What an operator does with the AWS CLI."""
        self.items["limiter"].setdefault("rtc", {})["hold_until"] = {"N": str(until)}

    def update_item(self, **call: Any) -> Any:
        self.calls["write"] += 1
        self.written_at = self._clock.monotonic()
        if latency := self.latency():
            self._clock.sleep(latency)
        self._fail()
        try:
            return super().update_item(**call)
        except ClientError:
            self.calls["refused"] += 1
            raise

    def get_item(self, **call: Any) -> Any:
        self.calls["read"] += 1
        self._clock.sleep(self.read_seconds)
        self._fail()
        return super().get_item(**call)

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        if self.always:
            raise self.always


def refusal(code: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": "made by the test"}}, "UpdateItem")


def make_limiter(
    clock: Clock, table: SlowTable, function: Function = "api", qps: float = 50, burst: int = 5
) -> RateLimiter:
    return RateLimiter(Table(table, "states", clock), replace(SETTINGS, rtc_qps=qps, rtc_burst=burst), function)


@pytest.fixture
def world() -> Turns:
    return Turns()


@pytest.fixture
def table(world: Turns) -> SlowTable:
    return SlowTable(world)


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    recorded: list[tuple[Any, ...]] = []
    monkeypatch.setattr(rate_limiter, "add_metric", lambda *args, **dimension: recorded.append((*args, dimension)))
    return recorded


def waits(world: Turns, limiter: RateLimiter, patience: float = FAR) -> float:
    """Seconds that a caller with this patience waits for its slot."""
    started = world.seconds
    limiter.acquire(world.seconds + patience)
    return world.seconds - started


def denied_for(limiter: RateLimiter, deadline: float, why: str = ".") -> float:
    """Seconds after which a caller that is refused may come back."""
    with pytest.raises(QuotaExceeded, match=why) as denied:
        limiter.acquire(deadline)
    assert denied.value.retry_after_seconds is not None
    assert denied.value.retry_after_seconds >= 0
    return denied.value.retry_after_seconds


def take_slots(world: Turns, limiter: RateLimiter, count: int) -> list[float]:
    """Take slots at one moment, as threads do that sleep side by side; when each comes."""
    slots = []
    began = world.seconds
    for _ in range(count):
        slots.append(waits(world, limiter))
        world.seconds = began
    return slots


# The schedule


def test_a_pause_allows_a_burst_and_then_the_rate(world: Turns, table: SlowTable) -> None:
    limiter = make_limiter(world, table, qps=50, burst=3)

    assert [waits(world, limiter) for _ in range(5)] == pytest.approx([0, 0, 0, 0.02, 0.02])


CALLS = st.lists(
    st.tuples(
        st.sampled_from(["api", "task", "sweep", "callback"]),
        st.integers(0, 1),
        st.integers(0, 150),
        st.sampled_from([0.0, 0.03, 0.5, FAR]),
    ),
    max_size=40,
)


@given(calls=CALLS, qps=st.sampled_from([1, 5, 7, 50, 60]), burst=st.sampled_from([1, 2, 5, 60]))
@examples(deadline=None, max_examples=200)
def test_no_window_holds_more_than_the_burst_and_its_share_of_the_rate(
    calls: list[tuple[Function, int, int, float]], qps: float, burst: int
) -> None:
    # Given processes that share a table, and callers whose sleep does not keep others from asking meanwhile
    world = Turns()
    table = SlowTable(world)
    limiters = {key: make_limiter(world, table, key[0], qps, burst) for key in {call[:2] for call in calls}}
    slots: list[float] = []
    for function, process, pause_ms, patience in calls:
        world.seconds += pause_ms / 1000
        asked_at, is_patient = world.seconds, function in {"sweep", "callback"}
        # When each asks for a slot
        try:
            limiters[function, process].acquire(asked_at + patience)
        except QuotaExceeded:
            # Then a sweep has waited as long as it could, and the others did not wait in vain
            assert world.seconds == pytest.approx(asked_at + patience * is_patient, abs=1e-5)
            continue
        # And no caller gets a slot after its deadline
        assert world.seconds <= asked_at + patience + 1e-5
        slots.append(world.seconds)
        if not is_patient:
            world.seconds = asked_at
    # And no window holds more than the rate and the burst allow
    slots.sort()
    for first, last in itertools.combinations(range(len(slots)), 2):
        assert last - first + 1 <= burst + (slots[last] - slots[first]) * qps + 1e-3


def test_processes_get_slots_in_the_order_of_asking(world: Turns, table: SlowTable) -> None:
    limiters = [make_limiter(world, table, "api"), make_limiter(world, table, "task")]

    slots = [take_slots(world, limiters[number % 2], 1)[0] for number in range(20)]

    assert slots == sorted(slots)
    assert slots[-1] == pytest.approx(15 * 0.02, abs=1e-5)


def test_a_denial_costs_one_write_and_says_when_to_come_back(
    world: Turns, table: SlowTable, metrics: list[tuple[Any, ...]]
) -> None:
    # Given another process that took all slots of the next two seconds
    take_slots(world, make_limiter(world, table, qps=10, burst=1), 20)
    limiter = make_limiter(world, table, qps=10, burst=1)
    table.calls.clear()
    metrics.clear()
    # When callers come who wait half a second at most
    retry_after = [denied_for(limiter, 0.5) for _ in range(3)]
    # Then each is refused at once: the first with a write, the others without, because it is certain
    assert table.calls == {"write": 1, "refused": 1}
    assert world.seconds == 0
    assert metrics == [("QuotaDenied", {})] * 3
    # And a caller that comes back after the time given gets a slot
    assert retry_after == [pytest.approx(1.5, abs=1e-5)] * 3
    world.seconds += retry_after[0] + 1e-5
    assert waits(world, limiter, 0.5) == pytest.approx(0.5, abs=1e-4)


def test_twelve_callers_at_once_are_all_answered_in_time(world: Turns, table: SlowTable) -> None:
    # Given twelve processes at a call a second, each with a caller that waits four seconds
    table.latency = lambda: 0.005
    answers: list[tuple[str, float]] = []

    def call() -> None:
        try:
            make_limiter(world, table, qps=1).acquire(4)
            answers.append(("granted", world.seconds))
        except QuotaExceeded:
            answers.append(("refused", world.seconds))

    # When all ask at once
    world.run(*[call] * 12)
    # Then the burst and the slots of four seconds are granted, and the others are refused at once
    assert Counter(answer for answer, _ in answers) == {"granted": 9, "refused": 3}
    assert max(seconds for _, seconds in answers) < 4.1
    assert max(seconds for answer, seconds in answers if answer == "refused") < 0.1


@pytest.mark.parametrize("function", ["api", "task", "sweep", "callback"])
def test_a_process_alone_needs_one_write_for_a_slot(world: Turns, table: SlowTable, function: Function) -> None:
    limiter = make_limiter(world, table, function)

    for _ in range(200):
        waits(world, limiter)

    assert table.calls == {"write": 200}


def test_a_wrong_guess_after_a_pause_costs_one_more_write(world: Turns, table: SlowTable) -> None:
    # Given a process that last found slots reserved
    ours, other = make_limiter(world, table), make_limiter(world, table)
    for limiter in (ours, other, ours):
        waits(world, limiter)
    table.calls.clear()
    # When all have paused
    world.seconds += 10
    waits(world, ours)
    # Then it guesses wrong once, and not again
    assert table.calls == {"write": 2, "refused": 1}
    world.seconds += 10
    waits(world, ours)
    assert table.calls == {"write": 3, "refused": 1}


def test_waits_are_recorded_by_function(world: Turns, table: SlowTable, metrics: list[tuple[Any, ...]]) -> None:
    limiter = make_limiter(world, table, "task", burst=1)
    waits(world, limiter)
    waits(world, limiter)

    assert [metric[0] for metric in metrics] == ["QuotaGranted", "QuotaWait"] * 2
    assert metrics[3] == ("QuotaWait", pytest.approx(20, abs=0.01), "Milliseconds", {"function": "task"})


def test_a_call_that_comes_late_to_its_slot_gets_another_one_once(world: Turns, table: SlowTable) -> None:
    # Given a table that stalls for a moment
    limiter = make_limiter(world, table)
    stalls = iter([0.5, 0.001])
    table.latency = lambda: next(stalls)
    # Then the caller takes another slot
    assert waits(world, limiter) == pytest.approx(0.501)
    assert table.calls == {"write": 2}
    # But if the table is always slow, the second slot serves
    table.latency = lambda: 0.5
    assert waits(world, limiter, 3) <= 1.5


@pytest.mark.parametrize("function", ["api", "sweep"])
def test_a_call_that_comes_late_to_its_slot_asks_for_no_other_one_past_its_deadline(
    world: Turns, table: SlowTable, function: Function
) -> None:
    limiter = make_limiter(world, table, function)
    table.latency = lambda: 0.5

    denied_for(limiter, 0.4)

    assert table.calls == {"write": 1}


# Waiting callers before sweeps


def test_a_sweep_never_reserves_more_than_one_slot_ahead() -> None:
    # Given three sweeps that want slots for 20 s, and a lookup now and then
    world = Turns()
    shared = SlowTable(world)
    ahead: list[float] = []

    def sweep() -> None:
        table = SlowTable(world)
        table.items = shared.items
        limiter = make_limiter(world, table, "sweep")
        while world.seconds < 20:
            limiter.acquire(FAR)
            ahead.append(world.seconds - table.written_at)

    def look_up() -> None:
        limiter = make_limiter(world, shared)
        while world.seconds < 20:
            limiter.acquire(FAR)
            world.sleep(0.3)

    world.run(sweep, sweep, sweep, look_up)

    assert len(ahead) >= 0.97 * 20 * (50 - 1 / 0.3)
    assert max(ahead) <= 0.02 + 1e-5


@pytest.mark.parametrize(("latency_ms", "sweeps"), [((3, 12), 8), ((3, 12), 1), ((10, 40), 8)])
def test_lookups_come_first_and_sweeps_get_the_rest(latency_ms: tuple[int, int], sweeps: int) -> None:
    # Given sweeps that use all slots they can get, and 5 lookups a second, for a minute
    draw = random.Random(7)  # noqa: S311 (the same course in each run)
    world = Turns(draw)
    table = SlowTable(world, lambda: draw.uniform(*latency_ms) / 1000)
    slots: list[float] = []
    by_sweep: Counter[int] = Counter()
    lookup_waits: list[float] = []

    def sweep(number: int) -> None:
        limiter = make_limiter(world, table, "sweep")
        while world.seconds < 60:
            limiter.acquire(FAR)
            slots.append(world.seconds)
            by_sweep[number] += 1

    def look_up() -> None:
        limiter = make_limiter(world, table)
        while world.seconds < 60:
            world.sleep(draw.expovariate(5))
            lookup_waits.append(waits(world, limiter, 2))
            slots.append(world.seconds)

    # When they run side by side
    world.run(look_up, *[functools.partial(sweep, number) for number in range(sweeps)])
    # Then the lookups wait little, and none is refused
    assert sorted(lookup_waits)[int(len(lookup_waits) * 0.99)] < 0.2
    # And the sweeps get at least 97 % of the rest, each its share
    assert by_sweep.total() >= 0.97 * (50 * 60 - len(lookup_waits))
    assert min(by_sweep.values()) >= by_sweep.total() / sweeps / 2
    # And no second holds more than the schedule allows
    slots.sort()
    assert max(bisect.bisect_right(slots, at + 1) - place for place, at in enumerate(slots)) <= 55 + 1
    # And nothing spins
    assert table.calls["write"] <= 3 * len(slots)


# Threads of a process, in real time


def call_side_by_side(limiter: RateLimiter, *patience: float) -> Counter[str]:
    """Let a thread for each caller ask at once, in this order; the outcomes."""
    outcomes: list[str] = []

    def call(seconds: float) -> None:
        try:
            limiter.acquire(CLOCK.monotonic() + seconds)
            outcomes.append("granted")
        except QuotaExceeded:
            outcomes.append("refused")
        except RuntimeError:
            outcomes.append("failed")

    threads = [threading.Thread(target=call, args=(seconds,)) for seconds in patience]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Counter(outcomes)


def test_threads_of_which_some_can_get_no_slot_lose_none() -> None:
    # Given 10 calls a second, and a table that takes a moment for the first write, so that threads queue up
    latencies = itertools.chain([0.05], itertools.repeat(0.0))
    table = SlowTable(CLOCK, lambda: next(latencies))
    began = CLOCK.now()
    # When ten threads ask at once that wait 0.35 s at most
    outcomes = call_side_by_side(make_limiter(CLOCK, table, qps=10, burst=3), *[0.35] * 10)
    # Then those are granted whose slot is in time: 3 at once, and 3 more; and no slot is lost
    assert 6 <= outcomes["granted"] < 10
    assert int(table.item["next_us"]["N"]) / 1e6 - began == pytest.approx(outcomes["granted"] / 10, abs=0.09)
    assert table.calls["write"] <= 8


def test_a_thread_with_a_shorter_deadline_loses_no_slot() -> None:
    # Given a burst of 2 and 2 calls a second: one slot is free during the first write, and the next one in 0.5 s
    latencies = itertools.chain([0.05], itertools.repeat(0.0))
    table = SlowTable(CLOCK, lambda: next(latencies))
    began = CLOCK.now()
    # When two threads queue up, and the second cannot wait for 0.5 s
    outcomes = call_side_by_side(make_limiter(CLOCK, table, qps=2, burst=2), 3, 3, 0.3)
    # Then the two others are granted at least, and no slot is lost
    assert outcomes["granted"] >= 2
    assert int(table.item["next_us"]["N"]) / 1e6 - began == pytest.approx(outcomes["granted"] / 2, abs=0.2)


def test_a_thread_is_refused_at_its_deadline_while_another_still_asks() -> None:
    # Given a first thread whose write takes longer than the second thread can wait
    is_refused = threading.Event()
    table = SlowTable(CLOCK, lambda: float(not is_refused.wait(20)))
    limiter = make_limiter(CLOCK, table)
    outcomes: Counter[str] = Counter()
    first = threading.Thread(target=lambda: outcomes.update(call_side_by_side(limiter, 30)))
    first.start()
    while not table.calls:
        CLOCK.sleep(0.001)
    # Then the second does not wait for its end
    denied_for(limiter, CLOCK.monotonic() + 0.05)
    is_refused.set()
    first.join()
    assert outcomes == {"granted": 1}


def test_each_thread_of_a_sweep_has_its_turn() -> None:
    # Given 30 threads that call again and again
    limiter = make_limiter(CLOCK, SlowTable(CLOCK), "sweep", qps=100)
    all_began = threading.Barrier(30)
    order: list[int] = []

    def call(number: int) -> None:
        all_began.wait()
        while len(order) < 30 * 5:
            limiter.acquire(CLOCK.monotonic() + 60)
            order.append(number)
            CLOCK.sleep(0.03)

    # When there were five slots for each
    with ThreadPoolExecutor(30) as pool:
        list(pool.map(call, range(30)))
    # Then none of them still waits for its first one
    assert {*order[: 30 * 5]} == {*range(30)}


def test_an_error_of_one_thread_does_not_stop_the_others() -> None:
    table = SlowTable(CLOCK, lambda: 0.02)
    table.errors = [RuntimeError("made by the test")]

    assert call_side_by_side(make_limiter(CLOCK, table), 20, 20, 20) == {"granted": 2, "failed": 1}


# Holds


@pytest.mark.parametrize("function", ["api", "sweep"])
def test_a_hold_of_one_process_stops_the_others_until_it_ends(
    world: Turns, table: SlowTable, function: Function
) -> None:
    ours, other = make_limiter(world, table, "task"), make_limiter(world, table, function)
    waits(world, other)
    ours.hold(10)

    assert table.item["hold_until"] == {"N": "1790000011"}
    assert waits(world, other) == pytest.approx(10.75, abs=0.1)
    assert waits(world, ours) <= 0.1


def test_a_caller_who_cannot_wait_for_the_end_of_a_hold_is_refused_at_once(world: Turns, table: SlowTable) -> None:
    limiter = make_limiter(world, table)
    table.hold(1_790_000_100)

    # The second refusal is certain, and costs no write.
    assert [denied_for(limiter, 2, "on hold") for _ in range(2)] == [pytest.approx(100 - 0.25 - 2)] * 2
    assert table.calls == {"write": 1, "refused": 1}


def test_a_longer_hold_stays_and_none_is_longer_than_a_minute(world: Turns, table: SlowTable) -> None:
    limiter, other = make_limiter(world, table), make_limiter(world, table)
    limiter.hold(3600)
    other.hold(5)
    limiter.hold(5)

    assert table.item["hold_until"] == {"N": "1790000061"}
    assert table.calls == {"write": 2, "refused": 1}


def test_a_hold_that_an_operator_lifts_ends_within_seconds(world: Turns, table: SlowTable) -> None:
    # Given a sweep, and lookups now and then, during a hold of an hour
    table.hold(1_790_003_600)
    sweep, lookup = make_limiter(world, table, "sweep"), make_limiter(world, table)
    slots: list[float] = []

    def lift() -> None:
        world.sleep(60)
        del table.item["hold_until"]

    def look_up() -> None:
        while not slots or world.seconds < 60:
            world.sleep(0.7)
            try:
                lookup.acquire(world.seconds + 1)
                slots.append(world.seconds)
            except QuotaExceeded:
                continue

    # When an operator lifts it
    world.run(lift, look_up, lambda: sweep.acquire(FAR))
    # Then both go on, the lookup as soon as its view is a second old
    assert 60 <= slots[0] <= 60 + 1 + 0.7
    assert 60 <= world.seconds <= 60 + 5
    assert table.calls["write"] <= 61 + 65 / 5 + 2


def test_a_caller_who_sleeps_long_for_its_slot_heeds_a_hold(world: Turns, table: SlowTable) -> None:
    # Given a caller whose slot is 3 s ahead
    limiter = make_limiter(world, table, qps=1, burst=1)
    take_slots(world, limiter, 3)
    table.calls.clear()

    def stop() -> None:
        world.sleep(1)
        table.hold(1_790_000_010)

    # When an operator stops all calls meanwhile
    slots: list[float] = []
    world.run(stop, lambda: slots.append(waits(world, limiter)))
    # Then the caller looks before it calls, with one read, and waits for the end
    assert slots[0] >= 9.75
    assert table.calls["read"] == 1


def test_a_slot_stays_valid_if_a_hold_cannot_be_looked_up(world: Turns, table: SlowTable) -> None:
    limiter = make_limiter(world, table, qps=1, burst=1)
    take_slots(world, limiter, 3)

    def fail() -> None:
        world.sleep(1)
        table.always = refusal("InternalServerError")

    slots: list[float] = []
    world.run(fail, lambda: slots.append(waits(world, limiter)))

    assert slots == [pytest.approx(3, abs=1e-4)]


def test_a_call_that_looked_long_for_a_hold_gets_another_slot(world: Turns, table: SlowTable) -> None:
    limiter = make_limiter(world, table, qps=1, burst=1)
    take_slots(world, limiter, 3)
    writes = table.calls["write"]
    # When the table takes a second to say whether calls are on hold
    table.read_seconds = 1
    # Then the call does not begin with the slot that has passed: many calls that hang so would begin at one moment
    assert waits(world, limiter) == pytest.approx(4, abs=1e-3)
    assert table.calls["write"] == writes + 2


def test_a_hold_that_cannot_be_written_is_logged(world: Turns, table: SlowTable, logs: io.StringIO) -> None:
    table.always = refusal("InternalServerError")

    make_limiter(world, table).hold(5)

    assert "InternalServerError" in logs.getvalue()


# A table that fails

THROTTLES = ["ProvisionedThroughputExceededException", "ThrottlingException", "RequestLimitExceeded"]
FAILURES = [
    *map(refusal, [*THROTTLES, "InternalServerError", "AccessDeniedException", "ResourceNotFoundException"]),
    EndpointConnectionError(endpoint_url="https://dynamodb.test"),
    ReadTimeoutError(endpoint_url="https://dynamodb.test"),
    aws.MalformedAnswer(),
]


@pytest.mark.parametrize("function", ["api", "task"])
@pytest.mark.parametrize("error", FAILURES, ids=aws.error_code)
def test_a_table_that_fails_is_a_denial(
    world: Turns, table: SlowTable, function: Function, error: Exception, logs: io.StringIO
) -> None:
    # Given a table that throttles or fails
    table.always = error
    limiter = make_limiter(world, table, function)
    # Then callers are refused, and the table is not asked for each
    retry_after = [denied_for(limiter, 2, "throttles or does not answer") for _ in range(3)]
    assert retry_after == [pytest.approx(3.75 - 2, abs=1e-5)] * 3
    assert table.calls == {"write": 1}
    assert aws.error_code(error) in logs.getvalue()
    # And are served again after the pause
    table.always = None
    world.seconds += 4
    assert waits(world, limiter, 0.1) == 0


def test_a_sweep_outlasts_an_outage_and_is_refused_only_at_its_deadline(world: Turns, table: SlowTable) -> None:
    limiter = make_limiter(world, table, "sweep")
    table.always = refusal("InternalServerError")
    denied_for(limiter, 60)
    assert world.seconds == pytest.approx(60, abs=1e-4)
    assert table.calls["write"] <= 1 + 60 / 3.75

    def recover() -> None:
        world.sleep(7)
        table.always = None

    world.run(recover, lambda: limiter.acquire(FAR))
    assert world.seconds <= 60 + 7 + 5


@pytest.mark.parametrize("function", ["api", "sweep"])
def test_an_item_that_never_agrees_is_not_asked_without_end(world: Turns, table: SlowTable, function: Function) -> None:
    # Given a table that refuses every write and shows an item without a reason for that
    table.always = refusal("ConditionalCheckFailedException")
    # Then a caller is refused at its deadline, after few writes
    denied_for(make_limiter(world, table, function), 25)
    assert world.seconds == pytest.approx(25, abs=1e-4)
    assert table.calls["write"] < 400


# Making one


def test_it_is_on_a_table_whose_two_tries_end_within_the_time_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(aws, "client", lambda service, **options: asked.update(options, service=service))

    Table.from_settings(SETTINGS)

    assert (asked["service"], asked["retries"]["total_max_attempts"]) == ("dynamodb", 2)
    # Between the tries botocore waits for a second at most.
    assert 2 * (asked["connect_timeout"] + asked["read_timeout"]) + 1 <= RESERVE_SECONDS
    with pytest.raises(SettingsError, match="TABLE_NAME"):
        Table.from_settings(replace(SETTINGS, table_name=""))


@pytest.mark.parametrize(
    ("name", "qps", "burst", "limit"), [("GetRoomOnlineUsers", 30, 3, 40), ("GetRoomUsersProperty#app", 8, 1, 10)]
)
def test_an_action_with_its_own_limit_has_an_item_and_a_rate_below_the_vendors(
    name: str, qps: int, burst: int, limit: int
) -> None:
    clock = Turns()
    table = SlowTable(clock)
    main, limiter = make_limiter(clock, table), RateLimiter(Table(table, "states", clock), SETTINGS, "api", name=name)

    # When a thread takes all that it can get in a time
    main.acquire(FAR)
    begun = []
    for _ in range(3 * limit):
        limiter.acquire(FAR)
        begun.append(clock.seconds)

    # Then even of calls that begin late a second holds no more than the vendor allows
    longest = 1 + rate_limiter.LATE_US / 1e6
    assert max(bisect.bisect_right(begun, since + longest) - at for at, since in enumerate(begun)) <= limit
    assert begun[-1] - begun[0] == pytest.approx((3 * limit - burst) / qps, rel=0.02)
    assert table.items["limiter"].keys() == {"rtc", name}


def test_a_hold_of_the_main_item_stops_every_action_and_that_of_another_stops_its_own_alone() -> None:
    clock = Turns()
    table = SlowTable(clock)
    main = make_limiter(clock, table)
    others = [RateLimiter(Table(table, "states", clock), SETTINGS, "api", name=name, main=main) for name in OWN_LIMITS]
    for limiter in (main, *others):
        limiter.acquire(FAR)

    # When the vendor throttles one action
    others[0].hold(30)
    main.acquire(clock.seconds + 1)
    others[1].acquire(clock.seconds + 1)
    with pytest.raises(QuotaExceeded, match="on hold"):
        others[0].acquire(clock.seconds + 1)
    # And when an operator stops all calls
    clock.sleep(60)
    table.hold(int(clock.now()) + 900)
    clock.sleep(1.1)
    for limiter in (main, *others):
        with pytest.raises(QuotaExceeded, match="on hold"):
            limiter.acquire(clock.seconds + 10)
    # Then calls go on when the hold is lifted
    del table.items["limiter"]["rtc"]["hold_until"]
    clock.sleep(1.1)
    for limiter in (main, *others):
        limiter.acquire(clock.seconds + 1)
