"""The commands: `run` shows the job, `serve` keeps it running, `board` pictures it, `query` asks the real service."""

import argparse
import errno
import json
import os
import signal
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.sandbox.printing import progress

PACKAGE = Path(__file__).parents[2] / "layers" / "stream_state"
HOW_TO_QUERY = """make query asks the real service, with your own keys. Please set:
  VOLCENGINE_ACCESS_KEY, VOLCENGINE_SECRET_KEY   a key pair of your Volcengine account
  VOLCENGINE_SESSION_TOKEN                       its session token, if the keys are temporary
  RTC_APP_IDS                                    the AppId of your RTC application (several: joined by commas)
  RTC_ENDPOINT, RTC_REGION                       only if yours are not https://rtc.volcengineapi.com and cn-north-1
and then: make query ROOM_ID=... USER_ID=..."""


def main() -> int:
    """Run the subcommand; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.sandbox", description=__doc__)
    parser.add_argument("command", choices=["run", "serve", "board", "query"])
    for name in ("--room-id", "--user-id", "--app-id"):
        parser.add_argument(name, default="", help="for query")
    parser.add_argument("--all", action="store_true", help="for run: every event of events/ too")
    arguments = parser.parse_args()
    if arguments.command == "query":
        return ask_real_service(arguments.room_id, arguments.user_id, arguments.app_id)
    # In a pipe, too, each line is read as it happens.
    vars(sys)["stdout"].reconfigure(line_buffering=True)
    # What this shell has set for AWS is for the real one.
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    # SIGINT too: a shell that starts a job in the background lets it ignore Ctrl-C. `nohup` stays heeded.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN: Python complains if such a signal is on its way already.
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


def start(command: str, *, shows_all: bool) -> int:
    """Start a sandbox for `run`, `serve` or `board`; the exit code."""
    print("Stream State for Volcengine RTC, on this machine alone: the built functions and layers, a simulator of")
    print("the RTC service that checks every signature, and moto in place of AWS. Nothing leaves this machine.")
    started = time.monotonic()
    with ExitStack() as running:
        with progress(lambda: f"starting: {time.monotonic() - started:.0f} s"):
            # Imported here because it takes a moment, and Ctrl-C must end quietly in that moment too.
            from tests.sandbox.board import save
            from tests.sandbox.demonstration import Demonstration
            from tests.sandbox.serving import serve
            from tests.sandbox.stack import BUILT_TEMPLATE, Sandbox

            if not BUILT_TEMPLATE.exists():
                print("There is nothing to run yet: make build makes it.", file=sys.stderr)
                return 1
            sandbox = running.enter_context(Sandbox({"EnableCallbacks": "true"}))
        if command == "run":
            return Demonstration(sandbox).run(shows_all=shows_all)
        return save(sandbox) if command == "board" else serve(sandbox)


def ask_real_service(room_id: str, user_id: str, app_id: str) -> int:
    """Print the vendor's answer for a user, or the problem; 2 if something must be set first."""
    sys.path.insert(0, str(PACKAGE))
    os.environ.setdefault("POWERTOOLS_LOG_LEVEL", "WARNING")
    # Imported here because the other subcommands must not need the package that they show from outside.
    from stream_state.adapters.signing import SigningKeys
    from stream_state.adapters.volcengine import VolcengineClient
    from stream_state.domain.documents import Answer
    from stream_state.domain.merging import StateRecord
    from stream_state.domain.parsing import parse_target
    from stream_state.errors import StreamStateError
    from stream_state.settings import Settings, SettingsError
    from tests.sandbox.static_keys import NoLimiter, StaticKeys

    access_key, secret_key, token, app_ids = map(
        os.environ.get,
        ("VOLCENGINE_ACCESS_KEY", "VOLCENGINE_SECRET_KEY", "VOLCENGINE_SESSION_TOKEN", "RTC_APP_IDS"),
    )
    if not (access_key and secret_key and app_ids and room_id and user_id):
        print(HOW_TO_QUERY, file=sys.stderr)
        return 2
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        return 2
    keys = StaticKeys(SigningKeys(access_key, secret_key, token or None))
    client = VolcengineClient(settings, keys, lambda _: NoLimiter())
    asked = {"room_id": room_id, "user_id": user_id} | ({"app_id": app_id} if app_id else {})
    try:
        target = parse_target(asked, settings.rtc_app_ids)
        result = client.stream_state(target, time.monotonic() + 10)
        answer = Answer(StateRecord(target, result.observations()), "query", result.rtc_request_id)
        print(json.dumps(answer.document(), indent=2))
    except StreamStateError as error:
        print(json.dumps(error.problem(), indent=2))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
