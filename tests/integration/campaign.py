"""Breaks everything around the functions, one fault after another, and prints the effects: `make faults`.

With --short some faults of each kind, as the tests run it; with --only the faults whose name holds a text.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [path for path in (str(Path(__file__).parents[2] / "layers" / "stream_state"),) if path not in sys.path]

from tests.integration.aws_faults import AWS_FAULTS  # noqa: E402 (after the path to the package)
from tests.integration.faults import Fault  # noqa: E402 (as above)
from tests.integration.presence_faults import presence_faults  # noqa: E402 (as above)
from tests.integration.vendor_faults import VENDOR_FAULTS  # noqa: E402 (as above)
from tests.integration.world import AFTER, REPOSITORY, FaultyWorld  # noqa: E402 (as above)
from tests.sandbox.aws import Aws  # noqa: E402 (as above)
from tests.sandbox.functions import REGION  # noqa: E402 (as above)
from tests.sandbox.server import Response  # noqa: E402 (as above)
from tests.sandbox.simulator import APP_ID  # noqa: E402 (as above)
from tests.sandbox.template import Template  # noqa: E402 (as above)

FAULTS: list[Fault] = [*VENDOR_FAULTS, *presence_faults(), *AWS_FAULTS]
# Most of the time goes into waiting for answers that do not come.
PROCESSES = 6
# A process takes seconds to begin.
FAULTS_WORTH_A_PROCESS = 25
SHORT_STEP = 20


@dataclass
class Verdict:
    """The effects of one fault."""

    fault: str
    kind: str
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    false_offs: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    seconds: float = 0

    @property
    def complaints(self) -> list[str]:
        """Everything that must not be."""
        named = {"wrong": self.wrong, "lost": self.lost, "false off": self.false_offs, "leaked": self.leaks}
        return [f"{self.kind}, {self.fault}: {name}: {what}" for name, all_of in named.items() for what in all_of]


def try_fault(world: FaultyWorld, fault: Fault) -> Verdict:
    """Let one fault happen between two settled states."""
    started = time.monotonic()
    verdict = Verdict(fault.name, fault.kind)
    world.begin()
    world.set_truth(AFTER)
    fault.begin(world)
    for way, expected in fault.expect.items():
        kinds = world.use(way)
        verdict.answers += 1
        if not kinds or not kinds <= set(expected.split("|")):
            verdict.wrong.append(f"{way}: {sorted(kinds)} instead of {expected}")
    if not fault.was_met(world):
        verdict.wrong.append("nothing met the fault")
    signatures = [arrival.headers.get("authorization", "").rpartition("=")[2] for arrival in world.simulator.arrivals]
    world.settle()
    world.compare(fault.expect)
    verdict.lost = world.evidence.lost
    verdict.false_offs = world.evidence.false_offs(absent=fault.absent)
    verdict.leaks = world.evidence.leaks(world.log, {signature for signature in signatures if len(signature) > 16})
    verdict.seconds = time.monotonic() - started
    return verdict


_worlds: list[FaultyWorld] = []


def start_world() -> None:
    """Begin a process of the campaign."""
    _worlds.append(FaultyWorld())


def try_here(index: int) -> Verdict:
    """Try a fault in the world of this process."""
    fault = FAULTS[index]
    try:
        return try_fault(_worlds[0], fault)
    except Exception as error:  # noqa: BLE001 (the others are to be tried too)
        return Verdict(fault.name, fault.kind, wrong=[f"the campaign itself failed: {error!r}"])


def try_all(chosen: Sequence[int]) -> list[Verdict]:
    """Try the faults of these numbers, several at a time."""
    # Loaded once, before the processes part: each would load for seconds.
    aws = Aws(REGION, lambda request: Response(404))
    Template(REPOSITORY / "template.yaml", {"RtcAppIds": APP_ID}, "warm", aws)
    aws.stop()
    # The slow faults begin first.
    order = sorted(chosen, key=lambda index: -FAULTS[index].slow)
    processes = min(PROCESSES, 1 + len(chosen) // FAULTS_WORTH_A_PROCESS)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("fork"), start_world) as pool:
        verdicts = {}
        for index, verdict in zip(order, pool.map(try_here, order), strict=True):
            verdicts[index] = verdict
            # At once, since the whole takes minutes.
            print("".join(f"{complaint}\n" for complaint in verdict.complaints), end="", flush=True)
    return [verdicts[index] for index in chosen]


def matrix(verdicts: Sequence[Verdict]) -> list[str]:
    """A row for each kind of fault, and their sum."""
    names = ("kind of fault", "faults", "answers", "of the right kind", "lost", 'false "off"', "leaked")
    rows: list[tuple[str, ...]] = [names]
    for kind in [*dict.fromkeys(verdict.kind for verdict in verdicts), "total"]:
        group = [verdict for verdict in verdicts if kind in {verdict.kind, "total"}]
        answers = sum(verdict.answers for verdict in group)
        lists = zip(*((v.wrong, v.lost, v.false_offs, v.leaks) for v in group), strict=True)
        wrong, *others = [sum(map(len, found)) for found in lists]
        rows.append((kind, *map(str, (len(group), answers, answers - wrong, *others))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:]))) for row in rows]


def short_form() -> list[int]:
    """The numbers of the faults that are marked so, and of some of each kind that are not slow."""
    places = dict.fromkeys((fault.kind for fault in FAULTS), 0)
    chosen = []
    for index, fault in enumerate(FAULTS):
        if not fault.slow and (fault.in_short or places[fault.kind] % SHORT_STEP == 0):
            chosen.append(index)
        places[fault.kind] += 1
    return chosen


def main(arguments: Sequence[str]) -> int:
    """Run and print; 0 if all is as it must be."""
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--slowest", type=int, default=0, help="name so many of the slowest faults")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    numbers = short_form() if options.short else range(len(FAULTS))
    named = {index: f"{FAULTS[index].kind}, {FAULTS[index].name}" for index in numbers}
    verdicts = try_all([index for index, name in named.items() if options.only in name])
    print("\n".join(matrix(verdicts)))
    for verdict in sorted(verdicts, key=lambda verdict: -verdict.seconds)[: options.slowest]:
        print(f"{verdict.seconds:6.1f} s  {verdict.kind}, {verdict.fault}")
    print(f"{len(verdicts)} faults in {time.monotonic() - started:.0f} s.")
    return 1 if any(verdict.complaints for verdict in verdicts) else 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)
