"""`make query`: asks the vendor's real service about one user, with the caller's own keys."""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, override
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import get_environ_proxies, select_proxy

# The package is the one of the layer, without a build.
sys.path.insert(0, str(Path(__file__).parents[2] / "layers" / "stream_state"))
os.environ.setdefault("POWERTOOLS_LOG_LEVEL", "WARNING")

from stream_state.adapters.signing import SigningKeys
from stream_state.adapters.volcengine import VolcengineClient
from stream_state.domain.documents import Answer
from stream_state.domain.merging import StateRecord
from stream_state.domain.parsing import parse_target
from stream_state.errors import RtcUnavailable, StreamStateError
from stream_state.settings import Settings, SettingsError
from tests.vendor.static_keys import NoLimiter, StaticKeys

SETTINGS = ("VOLCENGINE_ACCESS_KEY", "VOLCENGINE_SECRET_KEY", "VOLCENGINE_SESSION_TOKEN", "RTC_APP_IDS")
HOW_TO_QUERY = """make query asks the real service, with your own keys. Please set:
  VOLCENGINE_ACCESS_KEY, VOLCENGINE_SECRET_KEY   a key pair of your Volcengine account
  VOLCENGINE_SESSION_TOKEN                       its session token, if the keys are temporary
  RTC_APP_IDS                                    the AppId of your RTC application (several: joined by commas)
  RTC_ENDPOINT, RTC_REGION                       only if yours are not https://rtc.volcengineapi.com and cn-north-1
and then: make query ROOM_ID=... USER_ID=..."""


class ProxyAdapter(HTTPAdapter):
    """Goes through the proxy that the caller's shell names; the functions on AWS use none."""

    @override
    def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
        return super().send(request, *arguments, **options | {"proxies": get_environ_proxies(str(request.url))})


def way_to(endpoint: str) -> str:
    """The host, and the proxy before it if there is one, without the proxy's password."""
    proxy = select_proxy(endpoint, get_environ_proxies(endpoint))
    address = urlsplit(proxy if "//" in proxy else f"//{proxy}") if proxy else None
    through = f"through the proxy {address.netloc.rpartition('@')[2]}" if address else "without a proxy"
    return f"{urlsplit(endpoint).netloc}, {through}"


def ask(room_id: str, user_id: str, app_id: str) -> int:
    """Print the vendor's answer for a user, or the problem; 2 if something must be set first."""
    access_key, secret_key, token, app_ids = map(os.environ.get, SETTINGS)
    if not (access_key and secret_key and app_ids and room_id and user_id):
        print(HOW_TO_QUERY, file=sys.stderr)
        return 2
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as problem:
        print(problem, file=sys.stderr)
        return 2
    keys = StaticKeys(SigningKeys(access_key, secret_key, token or None))
    client = VolcengineClient(settings, keys, lambda _: NoLimiter(), adapter=ProxyAdapter())
    asked = {"room_id": room_id, "user_id": user_id} | ({"app_id": app_id} if app_id else {})
    try:
        target = parse_target(asked, settings.rtc_app_ids)
        result = client.stream_state(target, time.monotonic() + 10)
        answer = Answer(StateRecord(target, result.observations()), "query", result.rtc_request_id)
        print(json.dumps(answer.document(), indent=2))
    except StreamStateError as error:
        print(json.dumps(error.problem(), indent=2))
        if isinstance(error, RtcUnavailable):
            print(f"Asked: {way_to(settings.rtc_endpoint)}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.commands.query", description=__doc__)
    for name in ("--room-id", "--user-id", "--app-id"):
        parser.add_argument(name, default="")
    arguments = parser.parse_args()
    try:
        sys.exit(ask(arguments.room_id, arguments.user_id, arguments.app_id))
    except KeyboardInterrupt:
        sys.exit(130)
