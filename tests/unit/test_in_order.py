"""Results of work in threads: none is lost or held back, and the caller has its turn while none comes."""

from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

import pytest

from stream_state.services import in_order as module
from stream_state.services.in_order import completed, in_order


class ComesAtLook(Future[str]):
    """A future that comes just before it is looked at for so many times."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self.looks_left = look

    def done(self) -> bool:
        """See `Future`."""
        self.looks_left -= 1
        if not self.looks_left:
            self.set_result("late")
        return super().done()


@pytest.mark.parametrize("look", range(1, 7))
def test_a_result_that_comes_between_two_looks_is_not_lost(monkeypatch: pytest.MonkeyPatch, look: int) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.001)

    futures: list[Future[str]] = [ComesAtLook(look), completed("next")]

    results = [result for result in in_order(futures, 4) if result]

    assert results == ["late", "next"]


def test_results_are_not_held_back_while_other_work_is_not_yet_known() -> None:
    seen: list[str] = []

    def given() -> Iterator[Future[str] | None]:
        first: Future[str] = Future()
        yield first
        first.set_result("first")
        yield None
        yield None
        seen.append("no more")

    for result in in_order(given(), 4):
        seen += [result] if result else []

    assert seen == ["first", "no more"]


def test_the_caller_has_its_turn_after_each_result_that_is_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given work of which the first comes last
    futures: list[Future[str]] = [Future() for _ in range(5)]
    still = [*futures[1:], futures[0]]
    seen: list[str | None] = []

    def wait(*_: Any) -> None:
        still.pop(0).set_result("result")
        seen.append("comes")

    monkeypatch.setattr(module, "wait", wait)
    for result in in_order(futures, len(futures)):
        seen += [result]

    assert seen.count("result") == len(futures)
    assert ("comes", "comes") not in pairwise(seen)
