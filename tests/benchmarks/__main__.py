"""One table of all that is measured: this project, what a user would run otherwise, and the floor, in one run."""

import logging
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median

# No measured module may leave bytecode behind: the next cold start would find it.
sys.dont_write_bytecode = True
os.environ["PYTHONDONTWRITEBYTECODE"] = "1"

from tests.benchmarks import callbacks, rate_limiter, sweep  # noqa: E402 - after the line above, as all below
from tests.benchmarks.table import in_memory, table  # noqa: E402

ROOT = Path(__file__).parents[2]
PEERS = Path(__file__).parent / "peers"
PEERS_BUILT = ROOT / ".aws-sam" / "peers" / "build"
OURS, FIRST, SECOND, FLOOR = "this project", "volcengine", "volcengine-python-sdk", "floor"
TARGETS, QPS = 3_000, 50

type Row = tuple[str, Mapping[str, float], str]


def build_peers() -> None:
    """Build the peers' function as `sam build` does it, for the machine that it is going to run on."""
    architecture = "arm64" if platform.machine() in {"arm64", "aarch64"} else "x86_64"
    subprocess.run(
        [
            *(Path(sys.executable).with_name("sam"), "build", "--template", PEERS / "template.yaml"),
            *("--build-dir", PEERS_BUILT, "--parameter-overrides", f"Architecture={architecture}"),
        ],
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        check=True,
    )


def megabytes(folders: Iterable[Path], without: str = "") -> float:
    """The unpacked size of folders, without the entries of that pattern."""
    entries = [entry for folder in folders for entry in folder.iterdir() if not (without and entry.match(without))]
    files = [file for entry in entries for file in (entry, *entry.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1_000_000


def small() -> list[Row]:
    """A signature and a call."""
    from tests.benchmarks import calls

    signed, called = ({name: s * 1e6 for name, s in found.items()} for found in (calls.signing(), calls.calling()))
    return [
        ("A signature, processor time, us", signed, "{:.1f}"),
        ("A signed call on a warm connection, processor time, us", called, "{:.0f}"),
    ]


def starts() -> list[Row]:
    """Cold starts and warm requests of built functions."""
    from tests.benchmarks import cold_start

    measured = cold_start.measure()
    cold = {
        name: [median(part) * 1000 for part in zip(*times.cold, strict=True)]
        for name, times in measured.items()
        if not name.endswith(cold_start.WITH_TABLE)
    }
    rows: list[Row] = []
    for place, what in enumerate(("", ", processor time")):
        above = {name: times[place] - cold[FLOOR][place] for name, times in cold.items() if name != FLOOR}
        rows.append((f"Cold start up to the first answer, above the floor{what}, ms", above, "{:.0f}"))
    rows.append(("The floor of a cold start, ms", {FLOOR: cold[FLOOR][0]}, "{:.0f}"))
    built = PEERS_BUILT.parents[1] / "build"
    ours = megabytes(built / name for name in ("ApiFunction", "DependenciesLayer", "StreamStateLayer"))
    sizes = {OURS: ours, FIRST: megabytes([PEERS_BUILT / "Peer"], "volcenginesdk*")}
    rows.append(("Function with its layers, unpacked, MB", sizes, "{:.1f}"))
    warm = {name: 1 / median(work for _, work in times.warm) for name, times in measured.items()}
    rows.append(("API requests a second of one instance, by processor time", warm, "{:.0f}"))
    with_table = {name: warm[name + cold_start.WITH_TABLE] for name in (FIRST, SECOND)} | {OURS: warm[OURS]}
    rows.append(("  of the peers with two writes to a table, a second", with_table, "{:.0f}"))
    return rows


def memory(targets: int) -> float:
    """The peak memory of a sweep, in MiB; of a small process's child, since Linux counts what the parent had."""
    code = f"from tests.benchmarks.sweep import memory; print(memory({targets})[2])"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)


def long() -> list[Row]:
    """What takes a while, and has no peer: sweeps, memory, callback events, the shared limit."""
    swept = sweep.throughput(TARGETS, QPS)
    limited = rate_limiter.measure(rate_limiter.Course())
    waits = limited.of("api").waits_seconds
    received = callbacks.measure_over_http(table(in_memory), 3_000, 200)
    return [
        (f"Sweep of {TARGETS:,} users at {QPS}/s, s (floor: users / rate)",
         {OURS: swept["duration_seconds"], FLOOR: TARGETS / QPS}, "{:.1f}"),
        ("  calls in its worst second at the vendor", {OURS: swept["worst second at the vendor"]}, "{:.0f}"),
        ("8 sweeps and lookups: calls in the worst second",
         {OURS: rate_limiter.worst_window(limited.arrivals)}, "{:.0f}"),
        ("  share of the rate that was used, %",
         {OURS: 100 * len(limited.slots) / (limited.course.qps * limited.course.seconds)}, "{:.1f}"),
        ("  a lookup's wait, p99, ms", {OURS: rate_limiter.percentile(waits, 0.99) * 1000}, "{:.0f}"),
        ("  lookups refused", {OURS: limited.of("api").counts["refused"]}, "{:.0f}"),
        *((f"Peak memory of a sweep of {targets:,} users, MiB", {OURS: memory(targets)}, "{:.1f}")
          for targets in (1_000, 40_000)),
        ("Callback events a second of one instance", {OURS: received.per_second}, "{:.0f}"),
    ]  # fmt: skip


def show(rows: Iterable[Row]) -> None:
    """Print the table; the ratio is that of this project to the peer that does better."""
    print("| | this project | volcengine | volcengine-python-sdk | floor | ratio to the better peer |")
    print("|---|---|---|---|---|---|")
    for what, found, form in rows:
        cells = [form.format(found[name]) if name in found else "" for name in (OURS, FIRST, SECOND, FLOOR)]
        peers = [found[name] for name in (FIRST, SECOND) if name in found]
        more_is_better = "a second" in what
        better = (max if more_is_better else min)(peers) if peers else 0
        print(f"| {what} | {' | '.join(cells)} | {f'{found[OURS] / better:.2f}' if better else ''} |")


def main() -> None:
    """Measure all and print."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    started, rows = time.monotonic(), []
    steps: list[Callable[[], list[Row]]] = [small, *([starts] if sys.platform == "linux" else []), long]
    print("Building the peers ...", file=sys.stderr)
    build_peers()
    for step in steps:
        print(f"Measuring: {step.__doc__} ...", file=sys.stderr)
        rows += step()
    show(rows)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}"
    print(f"\nPython {platform.python_version()}, {machine}; took {time.monotonic() - started:.0f} s")
    if sys.platform != "linux":
        print("Cold starts and requests are measured on Linux only, where AWS's runtime client exists.")


if __name__ == "__main__":
    main()
