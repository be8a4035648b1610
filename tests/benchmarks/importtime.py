"""Reports the modules that each function of the built artifacts imports, and how long each module takes."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

BUILT = Path(__file__).parents[2] / ".aws-sam" / "build"
FUNCTIONS = ("ApiFunction", "TaskFunction", "SweepFunction", "CallbackFunction", "BoardFunction")
LAYERS = ("StreamStateLayer", "DependenciesLayer")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "made-up",
    "AWS_SECRET_ACCESS_KEY": "made-up",
    "AWS_DEFAULT_REGION": "eu-central-1",
    "CALLBACK_RETRY_QUEUE_URL": "https://sqs.example/123456789012/retry",
    "RESULTS_QUEUE_URL": "https://sqs.example/123456789012/results",
    "RTC_APP_IDS": "app-1",
    "RTC_CALLBACK_SECRET_ID": "callback-key",
    "RTC_SECRET_ID": "keys",
    "TABLE_NAME": "states",
}


def interpreter(function: str, *arguments: str, built: Path = BUILT) -> subprocess.CompletedProcess[str]:
    """Run Python as Lambda does for a function: its code, the layers, nothing of this environment, no new bytecode."""
    folders = [built / function, *(built / layer / "python" for layer in LAYERS)]
    return subprocess.run(
        [sys.executable, "-S", "-B", *arguments],
        env={**ENVIRONMENT, "PATH": os.defpath, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
        check=True,
    )


def import_times(function: str) -> list[tuple[str, int, int]]:
    """Each module that loading a function imports: its name, its own microseconds, and those with its imports."""
    found = []
    for line in interpreter(function, "-X", "importtime", "-c", "import app").stderr.splitlines()[1:]:
        own, total, name = line.removeprefix("import time:").split("|")
        found.append((name.strip(), int(own), int(total)))
    return found


def main() -> None:
    """Print, for each function, the modules that take longest by themselves."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.importtime", description=__doc__)
    parser.add_argument("--modules", type=int, default=25, help="how many of each function to list")
    listed = parser.parse_args().modules
    for function in FUNCTIONS:
        times = import_times(function)
        total_ms = sum(own for _, own, _ in times) / 1000
        print(f"{function}: {len(times)} modules, {total_ms:.0f} ms; ms of each alone, and with its imports:")
        for name, own, total in sorted(times, key=lambda entry: -entry[1])[:listed]:
            print(f"  {own / 1000:7.1f} {total / 1000:7.1f}  {name}")


if __name__ == "__main__":
    main()
