"""Work of several threads: the results come in the order in which the work was given out."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait

# A caller who waits for a result is asked this often whether something else is to be done.
IDLE_SECONDS = 1
# The results that work which takes long holds back at most.
MAX_HELD_BACK = 1_000


def in_order[T](futures: Iterable[Future[T] | None], at_once: int) -> Iterator[T | None]:
    """The results of futures, of which so many are under way at once; None for None, and while no result comes."""
    window: deque[Future[T]] = deque()
    for future in futures:
        if future is None:
            yield None
        else:
            window.append(future)
        yield from _ready(window, at_once)
    yield from _ready(window, 0)


def completed[T](result: T) -> Future[T]:
    """A future that has its result already."""
    future: Future[T] = Future()
    future.set_result(result)
    return future


def _ready[T](window: deque[Future[T]], at_once: int) -> Iterator[T | None]:
    """The results at the head of the window, until there is room for more work; with `at_once` 0 all of them."""
    while window:
        if window[0].done():
            yield window.popleft().result()
            continue
        under_way = [future for future in window if not future.done()]
        if len(under_way) < at_once and len(window) < MAX_HELD_BACK:
            yield None
            return
        wait(under_way, IDLE_SECONDS, FIRST_COMPLETED)
        if not window[0].done():
            yield None
