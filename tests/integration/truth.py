"""The truth campaign: random histories of users, each judged by a model of what is true: `make truth`.

With --seed N --histories 1 a single history happens again.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import batched
from pathlib import Path

sys.path[:0] = [path for path in (str(Path(__file__).parents[2] / "layers" / "stream_state"),) if path not in sys.path]

from stream_state.domain.states import SKEW_MS  # noqa: E402 (after the path to the package)
from tests.integration.truth_functions import on_one_thread  # noqa: E402 (as above)
from tests.integration.truth_history import MODES, History  # noqa: E402 (as above)

PROMISES = (
    "false off, false absent, false on, undelivered, never settled, settled late, sequence back, other content, "
    "broken chain"
)
BROKEN = PROMISES.split(", ")
MOST_NULL = 0.02
BATCH = 200


@dataclass
class Tally:
    """What was found in histories; by promise, the shortest history that broke it: events and seed."""

    found: Counter[str] = field(default_factory=Counter)
    settled_in_ms: list[int] = field(default_factory=list)
    shortest: dict[str, tuple[int, int]] = field(default_factory=dict)

    def add(self, other: "Tally") -> None:
        self.found.update(other.found)
        self.settled_in_ms += other.settled_in_ms
        for name, history in other.shortest.items():
            self.shortest[name] = min(history, self.shortest.get(name, history))

    @property
    def null_share(self) -> float:
        """The share of the time on that was shown as not known."""
        return self.found["null_ms"] / (self.found["on_ms"] or 1)


def tally_of(seeds: Iterable[int], *, mode: str = "queries", skew_ms: int = SKEW_MS) -> Tally:
    """Let the histories of the seeds happen."""
    tally = Tally()
    with on_one_thread():
        for seed in seeds:
            history = History(seed, mode=mode, skew_ms=skew_ms).run()
            settled_in_ms = [] if history.settled_in_ms is None else [history.settled_in_ms]
            broken = {name: (len(history.model.events), seed) for name in BROKEN if history.found[name]}
            tally.add(Tally(history.found, settled_in_ms, broken))
    return tally


def tallies_of(seeds: Iterable[int], *, mode: str) -> Iterator[Tally]:
    """The tallies of batches of histories, in as many processes as there are processors."""
    with ProcessPoolExecutor(os.process_cpu_count()) as processes:
        yield from processes.map(partial(tally_of, mode=mode), batched(seeds, BATCH, strict=False))


def report(mode: str, tally: Tally, seconds: float) -> bool:
    """Print a tally; whether all promises were kept."""
    names = ("histories", "answers", "messages", "rechecks", *BROKEN)
    is_kept = not any(tally.found[name] for name in BROKEN) and (mode != "queries" or tally.null_share < MOST_NULL)
    print(f"{mode}:")
    for name in names:
        events, seed = tally.shortest.get(name, (0, 0))
        print(f"  {name:24} {tally.found[name]:>10}" + (f"  shortest: seed {seed}, {events} events" if events else ""))
    print(f"  {'on shown as null':24} {tally.null_share:>10.2%}")
    if times := sorted(tally.settled_in_ms):
        p50, p99, most = (times[int((len(times) - 1) * share)] / 1000 for share in (0.5, 0.99, 1))
        print(f"  {'settled after':24} p50 {p50:.1f} s, p99 {p99:.1f} s, max {most:.1f} s")
    print(f"  {'seconds':24} {seconds:>10.0f}")
    return is_kept


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--histories", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mode", choices=MODES)
    options = parser.parse_args()
    is_kept = True
    for mode in (options.mode,) if options.mode else MODES:
        tally, started = Tally(), time.monotonic()
        for part in tallies_of(range(options.seed, options.seed + options.histories), mode=mode):
            tally.add(part)
        is_kept &= report(mode, tally, time.monotonic() - started)
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
