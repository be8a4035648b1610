"""The commands: `run` shows the job, `serve` keeps it running, `board` pictures it."""

import argparse
import errno
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress

from tests.commands.printing import progress
from tests.sandbox.environment import forget_aws
from tests.sandbox.ports import first_port

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Run the subcommand; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.commands", description=__doc__)
    parser.add_argument("command", choices=["run", "serve", "board"])
    parser.add_argument("--all", action="store_true", help="for run: every event of events/ too")
    arguments = parser.parse_args()
    # In a pipe, too, each line is read as it happens.
    vars(sys)["stdout"].reconfigure(line_buffering=True)
    # SIGINT too: a shell that starts a job in the background lets it ignore Ctrl-C. `nohup` stays heeded.
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        return start(arguments.command, shows_all=arguments.all)
    except KeyboardInterrupt:
        with suppress(OSError):
            print("\nStopped.")
        return 0 if arguments.command == "serve" else 130
    except OSError as error:
        # The reader of a pipe, or the terminal, has gone: nobody is left to tell.
        if error.errno not in (errno.EPIPE, errno.EIO):
            raise
        return 0
    finally:
        # Python writes what is left at its end, and would complain.
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stop(*_: object) -> None:
    """End the command, once: a second Ctrl-C must not end the clearing up."""
    for number in SIGNALS:
        # Not SIG_IGN: Python complains if such a signal is on its way already.
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def start(command: str, *, shows_all: bool) -> int:
    """Start a sandbox for `run`, `serve` or `board`; the exit code."""
    port = first_port(os.environ.get("PORT", "")) if command == "serve" else 0
    print("Stream State for Volcengine RTC, on this machine alone: the built functions and layers, a simulator of")
    print("the RTC service that checks every signature, and moto in place of AWS. Nothing leaves this machine.")
    forget_aws()
    started = time.monotonic()
    with ExitStack() as running:
        with progress(lambda: f"starting: {time.monotonic() - started:.0f} s"):
            # Imported here because it takes a moment, and Ctrl-C must end quietly in that moment too.
            from tests.commands.demonstration import Demonstration
            from tests.commands.picture import save
            from tests.commands.serving import serve
            from tests.sandbox.stack import BUILT_TEMPLATE, Sandbox

            if not BUILT_TEMPLATE.exists():
                print("There is nothing to run yet: make build makes it.", file=sys.stderr)
                return 1
            sandbox = running.enter_context(Sandbox({"EnableCallbacks": "true"}, first_port=port))
        if command == "run":
            return Demonstration(sandbox).run(shows_all=shows_all)
        return save(sandbox) if command == "board" else serve(sandbox, port)


if __name__ == "__main__":
    sys.exit(main())
