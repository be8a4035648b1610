"""The short form of the truth campaign, and that the campaign finds what it looks for."""

import sys
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest

from stream_state.domain import merging
from stream_state.domain.observations import Observations
from stream_state.domain.states import State, Value, state_of
from stream_state.services.delivery import Delivery
from tests.integration import truth
from tests.integration.truth import BROKEN, MOST_NULL, Tally, tally_of
from tests.integration.truth_functions import Instance
from tests.integration.truth_history import MODES, History


@pytest.mark.parametrize("mode", MODES)
def test_of_some_histories_every_promise_is_kept(mode: str) -> None:
    tally = tally_of(range(80), mode=mode)

    assert {name: tally.found[name] for name in BROKEN} == dict.fromkeys(BROKEN, 0)
    assert tally.found["histories"] == 80
    assert tally.found["answers"] > 4_000
    assert tally.found["messages"] > 500
    assert (tally.found["rechecks"] > 0) is (mode != "events")
    assert tally.null_share < (MOST_NULL if mode == "queries" else 1)


def test_the_same_seed_is_the_same_history() -> None:
    assert tally_of([7]) == tally_of([7])


def unknown_as_off(observations: Observations, skew_ms: int) -> State:
    state = state_of(observations, skew_ms)
    media = {medium: Value(bool(value.value), value.at_ms) for medium, value in state.media.items()}
    return State(media, Value(bool(state.present.value), state.present.at_ms))


def test_a_merge_without_the_skew_is_found() -> None:
    tally = tally_of(range(80), skew_ms=0)

    assert tally.found["false off"] > 0
    assert tally.shortest["false off"] in [(len(History(seed).model.events), seed) for seed in range(80)]


def test_a_merge_that_takes_unknown_for_off_is_found() -> None:
    with patch.object(merging, "state_of", unknown_as_off):
        tally = tally_of(range(30))

    assert min(tally.found["false off"], tally.found["false absent"]) > 0


def test_a_change_that_nobody_delivers_is_found() -> None:
    with patch.object(Delivery, "drain", lambda *_, **more: None):
        assert tally_of(range(60), mode="events").found["undelivered"] > 0


def test_doubt_that_is_kept_is_found() -> None:
    with patch.object(Instance, "recheck", lambda *_, **more: None):
        assert tally_of(range(30)).found["settled late"] > 0


@pytest.mark.parametrize(
    ("messages", "found"),
    [
        ([(1, "a", True, None, ["audio"]), (2, "b", False, True, ["audio"])], {}),
        ([(1, "a", True, None, ["audio"]), (1, "a", True, None, ["audio"])], {}),
        ([(2, "b", True, None, ["audio"]), (1, "a", False, None, ["audio"])], {"sequence back": 1}),
        ([(1, "a", True, None, ["audio"]), (1, "a", False, None, ["audio"])], {"other content": 1}),
        ([(1, "a", True, None, ["audio"]), (2, "b", False, False, [])], {"broken chain": 1}),
        ([(1, "a", True, None, ["audio"]), (2, "b", False, True, [])], {"broken chain": 1}),
    ],
    ids=["in order", "repeated", "back", "other content", "other previous", "other changed"],
)
def test_messages_that_do_not_follow_one_another_are_found(
    messages: list[tuple[Any, ...]], found: dict[str, int]
) -> None:
    # The history of this seed has no faults, after which less can be asked of the messages.
    history = History(2)

    for sequence, id_, audio, previous, changed in messages:
        media = {"audio": audio, "video": None, "screen_audio": None, "screen_video": None}
        before = None if previous is None else media | {"audio": previous}
        message = {"user_id": "teacher", "id": id_, "sequence": sequence, "present": None, "media": media}
        history.judge.deliver(message | {"previous": before, "changed": changed})

    assert {name: count for name, count in history.found.items() if name in BROKEN and count} == found


@pytest.mark.parametrize(("broken", "status"), [(0, 0), (1, 1)])
def test_a_broken_promise_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], broken: int, status: int
) -> None:
    def two_tallies(seeds: range, *, mode: str) -> list[Tally]:
        return [tally_of([1]), Tally(Counter(undelivered=broken), [], {"undelivered": (9, 5)} if broken else {})]

    monkeypatch.setattr(truth, "tallies_of", two_tallies)
    monkeypatch.setattr(sys, "argv", ["truth", "--histories", "1", "--mode", "queries"])

    assert truth.main() == status
    assert ("seed 5, 9 events" in capsys.readouterr().out) is bool(broken)
