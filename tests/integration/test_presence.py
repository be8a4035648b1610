"""Presence in place of the withdrawn action: the package's client and services against the simulator over HTTP."""

import random
from collections import Counter
from collections.abc import Iterator

import pytest

from stream_state.adapters.signing import SigningKeys
from stream_state.adapters.volcengine import VolcengineClient
from stream_state.clock import CLOCK
from stream_state.domain.requests import SweepRequest
from stream_state.domain.targets import PRESENT, Medium, Room, Target
from stream_state.services.lookup import Lookup
from stream_state.services.sweep import Sweep
from stream_state.settings import Settings
from tests.sandbox.signatures import KEYS
from tests.sandbox.simulator import APP_ID, MEDIA, Simulator
from tests.unit.fakes import FreeLimiter
from tests.unit.memory import World, stands_in
from tests.unit.observed import event
from tests.vendor.static_keys import StaticKeys

ROOMS = 1_000
type Values = dict[str, bool | None]


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with Simulator() as running:
        running.calls_per_second = None
        running.withdrawn = {"GetUserStreamState"}
        yield running


@pytest.fixture(params=["presence", "on"])
def world(request: pytest.FixtureRequest, simulator: Simulator) -> World:
    """A table in memory, and the vendor's client; with `on` the sweep finds out that the action is withdrawn."""
    world = World(stands_in(CLOCK), query=request.param)
    settings = Settings.from_environment({"RTC_APP_IDS": APP_ID, "RTC_ENDPOINT": simulator.url})
    keys = StaticKeys(SigningKeys(KEYS.access_key_id, KEYS.secret_access_key))
    rtc = VolcengineClient(settings, keys, lambda _: FreeLimiter())
    world.lookup = Lookup(rtc, world.recorder, query=request.param)
    world.sweep = Sweep(world.lookup, world.delivery, world.watch_list)
    return world


def history(world: World, simulator: Simulator, rng: random.Random, target: Target) -> None:
    """What happened to a user, of which some events were lost."""
    now_ms = CLOCK.now_ms()

    def happens(kind: str, seconds_ago: float) -> None:
        if rng.random() < 0.8:
            world.store.observe(target, event(kind, now_ms - int(seconds_ago * 1000)))

    is_there = rng.random() < 0.5
    happens("join", 600)
    for medium in rng.sample([*MEDIA.items()], rng.randint(0, 3)):
        happens(f"{medium[1]}.start", rng.uniform(300, 590))
        if is_there:
            simulator.publish(target.room_id, target.user_id, medium[0])
    if is_there:
        simulator.join(target.room_id, target.user_id)
        # The leave of an earlier connection comes late.
        if rng.random() < 0.2:
            happens(rng.choice(("leave", "lost")), rng.uniform(7, 200))
    elif rng.random() < 0.4:
        # All other leaves were lost, and the end of the room.
        happens(rng.choice(("leave", "lost", "end")), rng.uniform(7, 290))


def test_after_one_sweep_nobody_who_has_gone_is_on_and_nobody_who_is_there_is_off_because_of_it(
    world: World, simulator: Simulator
) -> None:
    # Given a thousand rooms with lost joins, starts, leaves and ends, of which events alone have spoken
    rng = random.Random(14)  # noqa: S311 (no secret)
    rooms = [Room(APP_ID, f"room-{number}") for number in range(ROOMS)]
    users = [Target(APP_ID, room.room_id, f"user-{number}") for room in rooms for number in range(rng.randint(1, 6))]
    for target in users:
        history(world, simulator, rng, target)
    before = {target: record.state.values for target, record in world.store.read(users).items()}
    world.watch_list.add(rooms, 3600)

    # When one sweep has gone over them
    deadline = CLOCK.monotonic() + 300
    summary = world.sweep.run(SweepRequest(None, emits_all=False), deadline, deadline)

    # Then each room cost one call
    assert (summary["failed"], summary["remaining"]) == (0, 0)
    calls = Counter(arrival.action for arrival in simulator.arrivals)
    tried = calls.pop("GetUserStreamState", 0)
    if world.lookup.query == "presence":
        assert (calls, tried) == ({"GetRoomOnlineUsers": ROOMS}, 0)
    else:
        # The rooms that were ahead when the withdrawal was noticed are asked about again: how many depends on how long
        # the first call takes.
        assert ROOMS <= calls["GetRoomOnlineUsers"] < 2 * ROOMS
        assert 0 < tried < 200
    # And nobody who has gone is on, and nobody who is there is off because of the sweep
    after = {target: record.state.values for target, record in world.store.read(users).items()}
    assert after.keys() >= before.keys()
    gone = [target for target in after if target.user_id not in simulator.rooms.get((APP_ID, target.room_id), {})]
    assert {tuple(after[target].values()) for target in gone} == {(False,) * 5}
    there = after.keys() - set(gone)
    assert there
    assert all(after[target][PRESENT] for target in there)
    unknown: Values = dict.fromkeys([*Medium, PRESENT])
    turned = [
        (target, medium)
        for target in there
        for medium in Medium
        if after[target][medium] is False and before.get(target, unknown)[medium] is not False
    ]
    assert turned == []
    assert any(values[medium] for values in before.values() for medium in Medium)
    assert any(before[target]["audio"] for target in gone if target in before)
