"""The state by the observations: two clocks, ends of one connection, devices, ties, absence.

Each history is given in the order of arrival, its times in milliseconds, and stands for itself in every other order.
"""

from itertools import permutations

import pytest

from stream_state.domain.observations import Observations, absent, logged_in, offline, online
from stream_state.domain.states import state_of
from stream_state.domain.targets import Medium
from tests.unit.observed import audio, cut, end, event, join, leave, lost, query, record_of, start, stop

type History = list[Observations]
type Expected = bool | None


def shown(*history: Observations, skew_ms: int = 5_000) -> tuple[Expected, Expected]:
    """The values of video and of presence after a history."""
    values = record_of(*history, skew_ms=skew_ms).state.values
    return values["video"], values["present"]


JOINED = [join(5_000, device="web"), start(5_100, device="web")]

# By name: the history, video, presence.
HISTORIES: dict[str, tuple[History, Expected, Expected]] = {
    # A connection's end while its user has a newer one.
    "leave just after a join and a start": ([join(5_000), start(5_100), leave(5_101)], None, None),
    "leave of another device": ([*JOINED, leave(5_101, device="ios")], True, True),
    "leave of the same device": ([*JOINED, leave(5_101, device="web")], None, None),
    "leave of an unknown device": ([*JOINED, leave(5_101)], None, None),
    "loss on another device": ([*JOINED, lost(35_100, device="ios")], True, True),
    "leave on another device, a grace after": ([*JOINED, leave(10_100, device="ios")], False, False),
    "loss on another device, a grace after": ([*JOINED, lost(45_100, device="ios")], False, False),
    "two leaves at once": ([*JOINED, leave(5_101, device="web"), leave(5_101, device="ios")], None, None),
    "stream cut just after its start": ([start(100_000), cut(100_100)], None, True),
    "loss on another device, then another stream": (
        [*JOINED, lost(35_100, device="ios"), audio(36_000, device="web")],
        True,
        True,
    ),
    "stopped, loss on another device, then another stream": (
        [*JOINED, stop(6_000, device="web"), lost(35_100, device="ios"), audio(36_000, device="web")],
        False,
        True,
    ),
    "join of another device, its loss, then another stream": (
        [*JOINED, join(20_000, device="ios"), lost(35_100, device="ios"), audio(36_000, device="web")],
        None,
        True,
    ),
    "stream cut on another device": ([*JOINED, cut(5_200, device="ios")], True, True),
    "join of a newer connection, then a leave": ([start(1_000), join(60_000), leave(61_000)], None, None),
    "leave, join and start at once": ([leave(9_000), join(9_000), start(9_000)], True, True),
    "end and start at once": ([start(9_000), end(9_000)], True, True),
    "stop and start at once": ([stop(9_000), start(9_000)], True, True),
    # The vendor's clock against ours.
    "clock 2 s ahead, late stop": ([start(2_100, arrived_at_ms=100), stop(2_000, arrived_at_ms=200)], True, True),
    "older stop delivered again": ([stop(1_000), start(2_000), stop(1_000)], True, True),
    "older start delivered again": ([start(1_000), stop(2_000), start(1_000)], False, True),
    "older end delivered again": ([end(1_000), join(2_000), start(2_100), end(1_000)], True, True),
    "clock 800 ms behind, query before": ([query(10_000), start(9_600, arrived_at_ms=10_400)], True, True),
    "query that does not see a start yet": ([start(10_000), query(10_300)], True, True),
    "query off long before a start": ([query(1_000), start(90_000)], True, True),
    "query on long before a stop": ([query(1_000, video=True), stop(90_000)], False, None),
    # A later connection.
    "join after a leave": ([start(1_000), leave(10_000), join(20_000)], None, True),
    "join after a stop and a leave": ([stop(1_000), leave(10_000), join(20_000)], None, True),
    "join after a stop and the end at once": ([stop(9_000), end(9_000), join(20_000)], None, True),
    "join after a stop alone": ([stop(1_000), join(20_000)], False, True),
    "join and leave after the end": ([start(1_000), end(10_000), join(11_000), leave(12_000)], None, None),
    "audio and leave after the end": ([start(1_000), end(10_000), audio(11_000), leave(12_000)], None, None),
    "leave, join, leave": ([start(1_000), leave(10_000), join(11_000), leave(12_000)], None, None),
    # For good.
    "left": ([join(1_000), start(1_100), leave(6_100)], False, False),
    "left after a cut": ([start(1_000), cut(20_000), leave(20_001)], False, False),
    "cut after a leave": ([start(1_000), query(100_000, video=True), leave(120_000), cut(120_001)], False, False),
    "lost": ([join(1_000), start(1_100), lost(41_100)], False, False),
    "kicked at once": ([join(1_000), start(1_100), end(1_101)], False, False),
    "kicked, then lost": ([query(80_000, video=True), end(100_000), lost(110_000)], False, False),
    "stopped": ([join(1_000), start(1_100), stop(1_101)], False, True),
    "stopped, then lost": ([query(95_000, video=True), stop(101_000), lost(130_000)], False, None),
    "stopped, then left at once": ([join(9_000), start(9_100), stop(9_200), leave(9_201)], False, None),
    "left, nothing else known": ([leave(9_000)], False, False),
    "off by a query, then lost": ([start(1_000), query(11_000), lost(31_000)], False, None),
    "off, then joined and left": ([query(1_000), join(90_000), leave(94_000)], False, None),
    # Found and absent.
    "left, then three polls": ([join(1_000), leave(10_000), query(20_000), query(30_000), query(40_000)], False, None),
    "left, then not found": ([start(1_000), leave(10_000), absent(20_000)], False, False),
    "left at once, then not found": ([start(1_000), leave(2_000), absent(8_000)], False, False),
    "left, not found, there": ([start(1_000), leave(2_000), absent(8_000), event("found", 20_000)], None, None),
    "not found, then lost within the grace": ([start(3_000), absent(23_000), lost(23_100)], False, False),
    "on by a query, then not found": ([query(1_000, video=True), absent(2_000)], None, False),
    "off by a query, then not found": ([query(1_000), absent(2_000)], False, False),
    "on, not found 5 s later": ([start(1_000), absent(6_000)], True, True),
    "on, not found 5 s and 1 ms later": ([start(1_000), absent(6_001)], None, False),
    "not found, then joined": ([absent(9_000), join(8_000)], None, True),
    "not found, then found": ([absent(9_000), query(9_001)], False, None),
    "found and not found at once": ([absent(9_000), query(9_000)], False, None),
    "found with nothing on": ([query(9_000)], False, None),
    # Presence calls.
    "offline, nothing else known": ([offline(9_000)], False, False),
    "online, nothing else known": ([online(9_000)], None, True),
    "leave lost, offline": ([start(1_000), offline(60_000)], False, False),
    "on by a query, offline": ([query(1_000, video=True), offline(60_000)], False, False),
    "on, offline 5 s later": ([start(1_000), offline(6_000)], True, True),
    "on, offline 5 s and 1 ms later": ([start(1_000), offline(6_001)], False, False),
    "offline, on 5 s later": ([offline(1_000), start(6_000)], True, True),
    "on, joined again, offline 5 s later": ([start(1_000), join(60_000), offline(65_000)], None, True),
    "offline, then joined": ([start(1_000), offline(60_000), join(90_000)], None, True),
    "offline, then on": ([offline(60_000), start(90_000)], True, True),
    "offline, then online": ([start(1_000), offline(60_000), online(90_000)], None, True),
    "offline, then not found": ([start(1_000), offline(60_000), absent(90_000)], False, False),
    "offline, then found with nothing on": ([start(1_000), offline(60_000), query(90_000)], False, None),
    "offline, then found on": ([stop(1_000), offline(60_000), query(90_000, video=True)], True, True),
    "online, offline, then found with nothing on": ([online(9_000), offline(69_000), query(109_000)], False, None),
    "online, not found, then found with nothing on": ([online(9_000), absent(69_000), query(109_000)], False, None),
    "online and offline at once": ([online(9_000), offline(9_000)], None, True),
    "online, then offline": ([online(9_000), offline(9_001)], False, False),
    "stopped, offline, online": ([stop(1_000), offline(60_000), online(90_000)], None, True),
    "lost in doubt, offline": ([start(1_000), lost(31_000), offline(37_000)], False, False),
    "left, then online within the skew": ([join(1_000), leave(20_000), online(25_000)], False, None),
    "left, then online": ([join(1_000), start(1_100), leave(20_000), online(25_001)], None, True),
    "kicked, then online": ([start(1_000), end(20_000), online(25_001)], None, True),
    "stopped, online": ([start(1_000), stop(2_000), online(25_001)], False, True),
    "left, stopped, online": ([leave(1_000), stop(2_000), online(25_001)], False, True),
    "stopped, left, online": ([stop(1_000), leave(2_000), online(25_001)], None, True),
    "online long before a leave": ([start(1_000), online(10_000), leave(60_000)], False, False),
    "online shortly before a leave": ([start(1_000), online(57_000), leave(60_000)], False, None),
    "off by a query, online": ([query(1_000), online(25_001)], False, True),
    # Logins.
    "login after a leave": ([start(1_000), leave(10_000), logged_in(12_000, 10_001)], None, True),
    "login before a leave of another connection": (
        [join(1_000), start(1_100), leave(9_000), logged_in(14_001, 1_000)],
        True,
        True,
    ),
    "login before a leave, asked within the skew": (
        [join(1_000), start(1_100), leave(9_000), logged_in(14_000, 1_000)],
        False,
        None,
    ),
    "login before a loss in doubt": ([join(1_000), start(1_100), lost(31_000), logged_in(37_000, 1_000)], True, True),
    "login after the start, before a leave": ([start(1_000), leave(30_000), logged_in(37_000, 2_000)], None, True),
    "login, then left": ([logged_in(9_000, 1_000), start(2_000), leave(60_000)], False, False),
    "login before the end of the room": ([start(1_100), end(30_000), logged_in(37_000, 1_000)], None, True),
    # Events against queries.
    "on by a query, then lost 20 s later": ([query(10_000, video=True), lost(30_000)], None, None),
    "left, on by a query": ([join(1_000), leave(10_000), query(12_000, video=True)], None, None),
    "on by a query long after a leave": ([leave(10_000), query(20_000, video=True)], True, True),
    "two queries at once": ([query(9_000), query(9_000, video=True), query(9_000, video=None)], True, True),
    "unknown and off by queries at once": ([query(9_000), query(9_000, video=None)], None, None),
    "on, later not described by a query": ([start(1_000), query(9_000, video=None)], None, True),
    "nothing": ([], None, None),
}


@pytest.mark.parametrize(("history", "video", "present"), HISTORIES.values(), ids=HISTORIES)
def test_a_history_gives_its_state_in_every_order(history: History, video: Expected, present: Expected) -> None:
    assert {shown(*order) for order in permutations(history)} == {(video, present)}


@pytest.mark.parametrize(
    ("kind", "grace_ms", "sooner"),
    [("leave", 5_000, None), ("lost", 40_000, None), ("video.cut", 40_000, None), ("end", 1, True)],
)
def test_an_end_proves_what_began_a_grace_before_it(kind: str, grace_ms: int, sooner: Expected) -> None:
    def video(end_at_ms: int) -> Expected:
        return shown(start(9_000), event(kind, end_at_ms))[0]

    assert [video(9_000 + grace_ms), video(9_000 + grace_ms - 1)] == [False, sooner]


@pytest.mark.parametrize(
    ("sent_after_ms", "off_after_start", "on_after_stop"),
    [(-5_001, True, False), (-5_000, True, None), (5_000, True, None), (5_001, False, True)],
)
def test_a_query_overrules_an_event_only_if_it_was_sent_later_by_more_than_the_skew(
    sent_after_ms: int, off_after_start: Expected, on_after_stop: Expected
) -> None:
    at_ms = 100_000 + sent_after_ms

    assert shown(start(100_000), query(at_ms))[0] is off_after_start
    assert shown(stop(100_000), query(at_ms, video=True))[0] is on_after_stop


@pytest.mark.parametrize(("skew_ms", "video"), [(0, False), (8_000, False), (8_001, True)])
def test_the_skew_can_be_set(skew_ms: int, video: Expected) -> None:
    assert shown(start(10_000), query(18_001), skew_ms=skew_ms)[0] is video


@pytest.mark.parametrize(("timestamp", "seen_ms"), [(23_000, 20_000), (17_000, 17_000)], ids=["ahead", "behind"])
def test_queries_are_ordered_against_the_earlier_of_timestamp_and_arrival(timestamp: int, seen_ms: int) -> None:
    on, off = start(timestamp, arrived_at_ms=20_000), stop(timestamp, arrived_at_ms=20_000)

    assert [shown(on, query(seen_ms + later_ms))[0] for later_ms in (5_000, 5_001)] == [True, False]
    assert [shown(off, query(seen_ms + later_ms, video=True))[0] for later_ms in (5_000, 5_001)] == [None, True]
    assert record_of(on).state.media[Medium.VIDEO].at_ms == seen_ms


def test_each_medium_stands_for_itself() -> None:
    # Given a stream of the screen that began just before an end, and an older one of audio
    screen = record_of(join(1_000), audio(2_000), event("screen_video.start", 99_000), leave(100_000)).state
    # Given the first event of a new user, an hour after the end of the room
    new = record_of(end(10_000), audio(3_610_000)).state

    # Then audio, video, screen_audio, screen_video and present are known as far as they were observed
    assert [*screen.values.values()] == [False, None, None, None, None]
    assert [*new.values.values()] == [True, None, None, None, True]
    assert (screen.publishing, new.publishing) == (None, True)


def test_the_answer_is_as_old_as_the_oldest_known_medium() -> None:
    state = record_of(query(10_000, audio=None), start(20_000), audio(21_000)).state

    assert (state.observed_at_ms, state.media[Medium.VIDEO].at_ms, state.present.at_ms) == (10_000, 20_000, 21_000)
    assert record_of(absent(9_000)).state.observed_at_ms == 9_000
    assert state_of({}).observed_at_ms is None


def test_a_state_serves_an_age_only_if_all_media_are_known_and_fresh() -> None:
    assert record_of(query(9_000)).state.is_whole_since(9_000)
    for history in ([query(9_000, video=None)], [query(8_999)], [query(8_999), start(20_000)], [start(20_000)]):
        assert not record_of(*history).state.is_whole_since(9_000)
    assert not state_of({}).is_whole_since(0)
