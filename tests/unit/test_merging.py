"""State records: merging in any order, sequence, rechecks, undelivered changes, expiry."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_state.domain.merging import StateRecord, as_lists, from_lists
from stream_state.domain.observations import Observations, absent, logged_in, offline, online
from stream_state.domain.targets import Medium
from tests.unit.observed import NOW_MS, TARGET, audio, end, event, join, leave, query, record_of, start, stop

type History = list[Observations]

# Times that meet at the bounds of the skew and of the graces, by clocks up to 3 s apart, early and late.
BASES = [NOW_MS + later_ms for later_ms in (0, 5_000, 10_000, 40_000, 80_000)]
TIMES = st.builds(int.__add__, st.sampled_from(BASES), st.sampled_from([0, 0, 1, -1]))
DELAYS = st.sampled_from([0, -3_000, 1, 30_000])
ENDS = ("leave", "lost", "end")
EVENTS = st.builds(
    lambda kind, at_ms, delay_ms, device: event(kind, at_ms, arrived_at_ms=at_ms + delay_ms, device=device),
    st.sampled_from(["join", "audio.start", "video.start", "audio.stop", "audio.cut", *ENDS]),
    TIMES,
    DELAYS,
    st.sampled_from([None, "web", "ios"]),
)
VALUES = st.none() | st.booleans()
QUERIES = st.builds(lambda at_ms, audio, video: query(at_ms, audio=audio, video=video), TIMES, VALUES, VALUES)
LOGINS = st.builds(logged_in, TIMES, TIMES, st.sampled_from([None, "web", "ios"]))
ASKED = st.one_of(QUERIES, LOGINS, *(st.builds(of, TIMES) for of in (absent, online, offline)))
OBSERVATIONS = st.one_of(EVENTS, EVENTS, ASKED)
HISTORIES = st.lists(OBSERVATIONS, min_size=1, max_size=9)


@given(HISTORIES, st.data())
def test_any_order_grouping_and_repeats_give_the_same_record(history: History, data: st.DataObject) -> None:
    repeats = data.draw(st.lists(st.sampled_from(history), max_size=5))
    shuffled = data.draw(st.permutations(history + repeats))
    middle = data.draw(st.integers(0, len(shuffled)))
    halves = [record_of(*part).observations for part in (shuffled[:middle], shuffled[middle:])]

    expected = record_of(*history)
    for other in (record_of(*shuffled), record_of(*halves)):
        assert (other.observations, other.state) == (expected.observations, expected.state)


@given(HISTORIES, st.data())
def test_a_repeat_changes_nothing(history: History, data: st.DataObject) -> None:
    record = record_of(*history)

    merge = record.merged(data.draw(st.sampled_from(history)), NOW_MS + 1)

    assert merge.is_repeat
    assert merge.after == record
    assert (merge.needs_recheck, merge.corrects_event) == (False, False)


@given(HISTORIES)
def test_nothing_is_false_that_no_observation_called_off_or_ended(history: History) -> None:
    kinds = {kind for observations in history for kind in observations}
    state = record_of(*history).state

    for medium in Medium:
        queries = [marks[f"{medium}.query"].value for marks in history if f"{medium}.query" in marks]
        if state.media[medium].value is False:
            assert False in queries or kinds & {*ENDS, f"{medium}.stop", f"{medium}.cut", "offline"}
    if state.present.value is False:
        assert kinds & {*ENDS, "absent", "offline"}


@given(HISTORIES, TIMES, DELAYS)
def test_a_start_stands_until_a_newer_event_or_a_later_query(history: History, at_ms: int, delay_ms: int) -> None:
    # Given a start at or after each end and stop, and no query of later than the skew after it
    seen_ms = at_ms + min(delay_ms, 0)
    asked = ("found", "absent", "online", "offline", "login", *(f"{medium}.query" for medium in Medium))
    latest = dict.fromkeys(asked, seen_ms + 5000)
    before = [one for one in history if all(mark.at_ms <= latest.get(kind, at_ms) for kind, mark in one.items())]

    state = record_of(*before, audio(at_ms, arrived_at_ms=at_ms + delay_ms)).state

    assert (state.values["audio"], state.values["present"]) == (True, True)


@given(HISTORIES)
def test_a_stored_record_is_read_as_it_was(history: History) -> None:
    observations = record_of(*history).observations

    assert from_lists(json.loads(json.dumps(as_lists(observations)))) == observations


@pytest.mark.parametrize(
    ("history", "last", "needed"),
    [
        # A value that was known is not known any more.
        ([start(9_000)], leave(10_000), True),
        ([stop(9_000), leave(10_000)], join(20_000), True),
        ([join(9_000)], leave(10_000), True),
        ([query(9_000, video=True)], absent(20_000), True),
        # An event and a query disagree within the skew.
        ([start(9_000)], query(10_000), True),
        ([start(9_000)], absent(10_000), True),
        ([end(9_000)], query(10_000, video=True), True),
        ([start(1_000), leave(2_000), leave(5_900)], query(8_100, video=True), True),
        ([end(1_000), join(90_000)], query(94_000, video=True), True),
        # Nothing is in doubt.
        ([], leave(9_000), False),
        ([start(9_000)], leave(20_000), False),
        ([start(9_000)], query(14_001), False),
        ([start(9_000)], query(10_000, video=True), False),
        ([start(9_000), leave(10_000)], query(15_001), False),
        ([leave(10_000)], absent(10_001), False),
        ([start(9_000), query(10_000)], query(11_000), False),
    ],
)
def test_a_doubt_asks_for_a_recheck(history: History, last: Observations, needed: object) -> None:
    assert record_of(*history).merged(last, NOW_MS).needs_recheck is needed


@pytest.mark.parametrize(
    ("history", "last", "corrects"),
    [
        ([start(1_000)], query(9_000), True),
        ([stop(1_000)], query(9_000, video=True), True),
        ([join(1_000)], absent(9_000), True),
        ([query(1_000, video=True)], query(9_000), False),
        ([start(1_000)], query(2_000), False),
        ([start(1_000)], query(9_000, video=True), False),
    ],
)
def test_a_query_that_turns_a_value_corrects_the_events(history: History, last: Observations, corrects: object) -> None:
    assert record_of(*history).merged(last, NOW_MS).corrects_event is corrects


def delivered(record: StateRecord) -> StateRecord:
    return record.with_delivery(record.state.values, record.sequence)


def test_a_change_is_undelivered_until_it_was_delivered() -> None:
    first = record_of(query(9_000, video=True))
    changed = delivered(first).merged(query(10_000), NOW_MS).after
    back = changed.merged(query(11_000, video=True), NOW_MS).after

    assert [record.is_undelivered for record in (first, delivered(first))] == [True, False]
    assert [record.is_undelivered for record in (changed, delivered(changed))] == [True, False]
    assert changed.with_delivery(first.state.values, first.sequence).is_undelivered
    # A change and its return are two changes: a consumer may have seen the first one.
    assert (back.is_undelivered, back.sequence - first.sequence) == (True, 2)


@pytest.mark.parametrize("history", [[], [query(9_000, audio=None, video=None, screen_audio=None, screen_video=None)]])
def test_a_new_target_of_which_nothing_is_known_has_no_change(history: History) -> None:
    assert not record_of(*history).is_undelivered


def test_a_later_time_alone_is_no_change() -> None:
    record = delivered(record_of(query(9_000)))
    merge = record.merged(query(12_000), NOW_MS + 5)

    assert (merge.is_repeat, merge.after.is_undelivered, merge.after.sequence) == (False, False, record.sequence)
    assert merge.after.state.observed_at_ms == 12_000


def test_what_is_not_known_any_more_after_expiry_is_a_change() -> None:
    record = delivered(record_of(query(9_000, video=True)))

    forgotten = record.forgotten()

    assert (forgotten.state.is_known, forgotten.is_undelivered) == (False, True)
    assert (forgotten.delivered, forgotten.sequence) == (record.delivered, record.sequence + 1)
    assert forgotten.forgotten().sequence == forgotten.sequence


@given(st.lists(st.tuples(OBSERVATIONS, st.sampled_from(["kept", "kept", "kept", "expired", "deleted"])), max_size=9))
def test_the_sequence_grows_by_one_with_each_change_and_never_goes_back(
    history: list[tuple[Observations, str]],
) -> None:
    record, now_ms, last = StateRecord(TARGET), NOW_MS, 0
    for observations, fate in history:
        now_ms += 1
        after = record.merged(observations, now_ms).after
        is_changed = after.state.values != record.state.values
        assert after.sequence == (record.sequence + is_changed if record.sequence else now_ms)
        assert after.sequence >= last
        last = after.sequence
        record = {"kept": after, "expired": after.forgotten(), "deleted": StateRecord(TARGET)}[fate]
        now_ms += 0 if fate == "kept" else 86_400_000
