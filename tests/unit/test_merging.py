"""Histories of queries and pushed events, merged in any order, and across the life of a table item."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from stream_state.model import FOUND, PRESENT, Fact, Known, Medium, StreamState, Target
from stream_state.table import STATE_LIFE_SECONDS
from tests.unit.fakes import WALL_SECONDS, Clock
from tests.unit.memory import APP_ID, World, query_facts

TARGET = Target(APP_ID, "class-1", "teacher")
START_MS = int(WALL_SECONDS * 1000)
PARTITION = f"state#{TARGET.app_id}#{TARGET.room_id}"
NAMES = (*(medium.value for medium in Medium), PRESENT)

type Facts = Mapping[str, Fact]


def _query(at_ms: int, values: list[bool | None]) -> Facts:
    return query_facts(dict(zip(NAMES, values, strict=False)), at_ms)


def _stream_event(at_ms: int, medium: Medium, value: bool) -> Facts:  # noqa: FBT001 (a strategy gives it)
    return {medium.value: Fact(value, at_ms)} | ({PRESENT: Fact(value=True, at_ms=at_ms)} if value else {})


def _presence_event(at_ms: int, joined: bool) -> Facts:  # noqa: FBT001 (a strategy gives it)
    off = {} if joined else {medium.value: Fact(value=False, at_ms=at_ms) for medium in Medium}
    return {**off, PRESENT: Fact(joined, at_ms)}


def _not_found(at_ms: int) -> Facts:
    return StreamState.not_found(TARGET, at_ms, None).facts


times = st.integers(START_MS, START_MS + 4)
four_values = st.lists(st.none() | st.booleans(), min_size=4, max_size=4)
observations = st.one_of(
    st.builds(_query, times, four_values),
    st.builds(_stream_event, times, st.sampled_from(Medium), st.booleans()),
    st.builds(_presence_event, times, st.booleans()),
    st.builds(_not_found, times),
)
histories = st.lists(observations, min_size=1, max_size=8)


def merged(history: Iterable[Facts]) -> Known:
    known = Known(TARGET)
    for facts in history:
        known = known.merged(facts, START_MS)
    return known


@given(histories, st.data())
def test_any_order_and_repetition_of_a_history_merges_to_the_same_facts_and_values(
    history: list[Facts], data: st.DataObject
) -> None:
    repeats = data.draw(st.lists(st.sampled_from(history), max_size=6))
    shuffled = data.draw(st.permutations(history + repeats))

    assert merged(shuffled).facts == merged(history).facts
    assert merged(shuffled).state().answer() == merged(history).state().answer()


@given(histories)
def test_what_is_known_is_the_latest_of_what_was_told_and_at_equal_times_true_then_unknown_then_false(
    history: list[Facts],
) -> None:
    known = merged(history)

    assert known.facts.keys() == {name for facts in history for name in facts}
    for name, fact in known.facts.items():
        told = [facts[name] for facts in history if name in facts]
        last = [each.value for each in told if each.at_ms == max(each.at_ms for each in told)]
        assert fact.at_ms == max(each.at_ms for each in told)
        assert fact.value is (True if True in last else None if None in last else False)


@given(histories)
def test_a_fact_never_moves_back_in_time(history: list[Facts]) -> None:
    known = Known(TARGET)
    for facts in history:
        after = known.merged(facts, START_MS)
        assert all(after.facts[name].at_ms >= fact.at_ms for name, fact in known.facts.items())
        known = after


@given(histories)
def test_nothing_becomes_false_that_nobody_called_false(history: list[Facts]) -> None:
    for name, value in merged(history).state().values.items():
        sources = (name, FOUND) if name == PRESENT else (name,)
        if value is False:
            assert any(facts[of].value is False for facts in history for of in sources if of in facts)


@given(histories)
def test_on_is_lost_to_a_newer_observation_of_the_same_medium_only(history: list[Facts]) -> None:
    known = merged(history)
    for facts in history:
        for name in (name for name, fact in facts.items() if fact.value):
            assert known.facts[name].value or known.facts[name].at_ms > facts[name].at_ms


@given(histories)
def test_the_sequence_begins_with_the_time_and_grows_by_one_with_each_change_of_values(history: list[Facts]) -> None:
    known = Known(TARGET)
    for count, facts in enumerate(history):
        after = known.merged(facts, START_MS + count)
        grows = after.state().values != known.state().values
        assert after.sequence == (known.sequence + grows if count else START_MS)
        known = after


pauses = st.sampled_from([0, 1, STATE_LIFE_SECONDS - 1, STATE_LIFE_SECONDS, STATE_LIFE_SECONDS * 2])


@dataclass(frozen=True)
class Step:
    """What is observed after a pause, whether the queue is told, and whether DynamoDB has deleted expired items."""

    pause_seconds: int
    values: list[bool | None] | None
    tells: bool
    deletes_expired: bool


steps = st.lists(st.builds(Step, pauses, st.none() | four_values, st.booleans(), st.booleans()), max_size=8)


@given(steps)
def test_the_sequence_told_never_goes_back_also_after_an_item_has_expired(history: list[Step]) -> None:
    world = World(Clock())
    told: list[tuple[int, Mapping[str, bool | None]]] = []
    for step in history:
        world.clock.seconds += step.pause_seconds + 0.002
        if step.deletes_expired:
            for item in list(world.dynamodb.client.items[PARTITION].values()):
                if int(item["expires_at"]["N"]) <= world.clock.wall():
                    world.dynamodb.client.items[PARTITION].clear()
        at_ms = int(world.clock.wall() * 1000)
        facts = _not_found(at_ms) if step.values is None else _query(at_ms, step.values)

        known = world.table.observe(StreamState(TARGET, facts, "query"))

        # Also what is no news is sent by a sweep that tells all.
        if step.tells:
            told.append((known.message("query", None)["sequence"], known.state().values))
        if step.tells and known.is_news:
            world.table.mark_told(known)
    assert [sequence for sequence, _ in told] == sorted(sequence for sequence, _ in told)
    for (sequence, values), (next_sequence, next_values) in itertools.pairwise(told):
        assert sequence < next_sequence or values == next_values


def test_what_is_known_no_more_after_a_day_is_news(clock: Clock) -> None:
    """Given an expired item, when the vendor tells nothing, then that nothing is known any more is news."""
    world = World(clock)
    first = world.table.observe(StreamState(TARGET, _query(START_MS, [True, False, False, False]), "query"))
    world.table.mark_told(first)
    clock.seconds += STATE_LIFE_SECONDS + 1

    after = world.table.observe(StreamState(TARGET, _query(int(clock.wall() * 1000), [None] * 4), "query"))

    assert after.state().publishing is None
    assert after.is_news
    assert after.sequence > first.sequence
    assert after.message("query", None)["changed"] == [*NAMES]
