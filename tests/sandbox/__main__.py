"""What the Makefile calls: `run` shows the job, `serve` keeps it running, `query` asks the real service."""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

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
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="show the whole job on this machine")
    run.add_argument("--logs", action="store_true", help="also print what the functions log")
    commands.add_parser("serve", help="keep the sandbox running")
    query = commands.add_parser("query", help="ask the real service")
    for name in ("--room-id", "--user-id", "--app-id"):
        query.add_argument(name, default="")
    arguments = parser.parse_args()
    if arguments.command == "query":
        return ask_real_service(arguments.room_id, arguments.user_id, arguments.app_id)
    # SIGINT too: a shell that starts a job in the background lets it ignore Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        return start(arguments)
    except KeyboardInterrupt:
        print("\nStopped.")
        return 0 if arguments.command == "serve" else 130


def start(arguments: argparse.Namespace) -> int:
    """Start a sandbox for `run` or `serve`; the exit code."""
    # Imported here because it takes a moment, and Ctrl-C must end quietly in that moment too.
    from tests.sandbox.demonstration import Demonstration
    from tests.sandbox.serving import serve
    from tests.sandbox.stack import NotBuiltError, Sandbox

    try:
        with Sandbox() as sandbox:
            if arguments.command == "run":
                return Demonstration(sandbox, show_logs=arguments.logs).run()
            return serve(sandbox)
    except NotBuiltError as problem:
        print(problem, file=sys.stderr)
        return 1


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def ask_real_service(room_id: str, user_id: str, app_id: str) -> int:
    """Print the vendor's answer for a user, or the problem; 2 if something must be set first."""
    sys.path.insert(0, str(PACKAGE))
    os.environ.setdefault("POWERTOOLS_LOG_LEVEL", "WARNING")
    # Imported here because the other subcommands must not need the package that they show from outside.
    from stream_state.credentials import StaticKeys
    from stream_state.errors import StreamStateError
    from stream_state.model import Target
    from stream_state.quota import LocalLimiter
    from stream_state.rtc import RtcClient
    from stream_state.settings import Settings, SettingsError
    from stream_state.signing import SigningKeys

    environment = os.environ
    access_key, secret_key = environment.get("VOLCENGINE_ACCESS_KEY"), environment.get("VOLCENGINE_SECRET_KEY")
    if not (access_key and secret_key and environment.get("RTC_APP_IDS") and room_id and user_id):
        print(HOW_TO_QUERY, file=sys.stderr)
        return 2
    try:
        settings = Settings.from_environment(environment)
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        return 2
    keys = SigningKeys(access_key, secret_key, environment.get("VOLCENGINE_SESSION_TOKEN") or None)
    client = RtcClient(settings, StaticKeys(keys), LocalLimiter(settings.rtc_qps, settings.rtc_burst))
    asked = {"room_id": room_id, "user_id": user_id} | ({"app_id": app_id} if app_id else {})
    try:
        target = Target.parse(asked, settings.rtc_app_ids)
        print(json.dumps(client.stream_state(target, time.monotonic() + 10).answer(), indent=2))
    except StreamStateError as error:
        print(json.dumps(error.problem(), indent=2))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
