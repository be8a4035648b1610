"""Measures a signature and a full signed call on a warm connection: this project, the peers and the floor.

Each signs or asks about the same users, in turns of a few calls. The benchmark takes the processor time of this
process, threads included; the simulator runs in another one. It reports the least of many turns, since other work only
adds to it.
"""

import hashlib
import hmac
import json
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PEER = ROOT / ".aws-sam" / "peers" / "build" / "Peer"
sys.path[:0] = [str(ROOT / "layers" / "stream_state")]
# The peer's packages come last: what both use is what this project has pinned.
sys.path += [str(PEER)]
sys.dont_write_bytecode = True

import requests  # noqa: E402 - after the paths, as all below

from stream_state.adapters.signing import SigningKeys, VolcengineAuth  # noqa: E402
from stream_state.adapters.volcengine import VolcengineClient  # noqa: E402
from stream_state.domain.targets import Target  # noqa: E402
from stream_state.observability import publish_metrics  # noqa: E402
from stream_state.settings import Settings  # noqa: E402
from tests.benchmarks.peers import first_sdk, second_sdk  # noqa: E402
from tests.benchmarks.sweep import APP_ID, process, quiet  # noqa: E402
from tests.sandbox.signatures import KEYS  # noqa: E402
from tests.sandbox.simulator import Simulator  # noqa: E402
from tests.unit.fakes import FreeLimiter  # noqa: E402
from tests.vendor.static_keys import StaticKeys  # noqa: E402

# Users in one turn: few, so that some turns meet no other work.
SOME = 20
USERS = [f"user-{number:03}" for number in range(100)]
ROOM_ID, REGION = "class-1", "cn-north-1"
OURS, FLOOR = "this project", "floor"
FIRST, SECOND = "volcengine", "volcengine-python-sdk"
HASH_OF_NOTHING = hashlib.sha256(b"").hexdigest()

type Work = Callable[[str], object]


def least(works: Mapping[str, Work], turns: int) -> dict[str, float]:
    """Seconds of the processor for one user, of each work, the least of so many turns."""
    found = dict.fromkeys(works, float("inf"))
    for turn in range(turns):
        users = USERS[turn * SOME % len(USERS) :][:SOME]
        for name, work in works.items():
            # The processor's caches still hold the work before this one.
            work(users[0])
            started = time.process_time()
            for user in users:
                work(user)
            found[name] = min(found[name], (time.process_time() - started) / len(users))
    return found


@cache
def day_key(secret: str, day: str) -> bytes:
    """The key of a day."""
    key = secret.encode()
    for part in (day, REGION, "rtc", "request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def floor_headers(host: str, query: str, keys: tuple[str, str]) -> dict[str, str]:
    """The least there is to a signature: strings joined by hand, for this one action, with a key kept."""
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    scope = f"{date[:8]}/{REGION}/rtc/request"
    names = "host;x-content-sha256;x-date"
    canonical = (
        f"GET\n/\n{query}\nhost:{host}\nx-content-sha256:{HASH_OF_NOTHING}\nx-date:{date}\n\n{names}\n{HASH_OF_NOTHING}"
    )
    to_sign = f"HMAC-SHA256\n{date}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = hmac.digest(day_key(keys[1], date[:8]), to_sign.encode(), "sha256").hex()
    authorization = f"HMAC-SHA256 Credential={keys[0]}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {"X-Date": date, "X-Content-Sha256": HASH_OF_NOTHING, "Authorization": authorization}


def query_of(user: str) -> str:
    """The canonical query of a call."""
    return f"Action=GetUserStreamState&AppId={APP_ID}&RoomId={ROOM_ID}&UserId={user}&Version=2020-12-01"


def signing(turns: int = 2000) -> dict[str, float]:
    """Seconds for one signature, from a request for this action as each takes it to its signed headers."""
    from volcengine.auth.SignerV4 import SignerV4 as First
    from volcengine.base.Request import Request
    from volcengine.Credentials import Credentials
    from volcenginesdkcore.signv4 import SignerV4 as Second

    keys, host = ("AKLT" + "x" * 43, "y" * 60), "rtc.volcengineapi.com"
    queries = {user: dict(pair.split("=") for pair in query_of(user).split("&")) for user in USERS}
    prepared = {user: requests.Request("GET", f"https://{host}/", params=queries[user]).prepare() for user in USERS}
    auth = VolcengineAuth(SigningKeys(*keys), "rtc", REGION)
    credentials = Credentials(*keys, "rtc", REGION)

    def first(user: str) -> Mapping[str, str]:
        request = Request()
        request.method, request.path, request.query, request.headers = "GET", "/", queries[user], {"Host": host}
        First.sign(request, credentials)
        headers: Mapping[str, str] = request.headers
        return headers

    def second(user: str) -> Mapping[str, str]:
        headers = {"Host": host}
        Second.sign("/", "GET", headers, "", {}, queries[user], *keys, REGION, "rtc")
        return headers

    works: dict[str, Callable[[str], Mapping[str, str]]] = {
        OURS: lambda user: auth(prepared[user]).headers,
        FIRST: first,
        SECOND: second,
        FLOOR: lambda user: floor_headers(host, query_of(user), keys),
    }
    while len({work(USERS[0])["Authorization"] for work in works.values()}) > 1:
        # The signatures are not of the same second, which is part of them.
        if datetime.now(UTC).microsecond < 500_000:
            raise RuntimeError("the signatures differ")
    return least(works, turns)


def answer_at_once(ready: Any, done: Any) -> None:
    """Be the vendor until `done` says to end."""
    with Simulator() as simulator:
        simulator.app_ids, simulator.calls_per_second, simulator.unknown_is_error = (APP_ID,), None, False
        ready.put((simulator.url, KEYS.access_key_id, KEYS.secret_access_key))
        done.get()


def calling(turns: int = 120) -> dict[str, float]:
    """Seconds for one call, from a user to the vendor's result for it."""
    with process(answer_at_once) as (vendor, _):
        url, *keys = vendor.get()
        settings = Settings.from_environment({"RTC_APP_IDS": APP_ID, "RTC_ENDPOINT": url})
        client = VolcengineClient(settings, StaticKeys(SigningKeys(*keys)), lambda _: FreeLimiter())
        peers = [sdk.caller(url, *keys) for sdk in (first_sdk, second_sdk)]
        host = urlsplit(url).netloc
        connection = HTTPConnection(host)

        def floor(user: str) -> Any:
            query = query_of(user)
            connection.request("GET", f"/?{query}", headers=floor_headers(host, query, (keys[0], keys[1])))
            return json.loads(connection.getresponse().read())["Result"]

        works: dict[str, Work] = {
            OURS: lambda user: client.stream_state(Target(APP_ID, ROOM_ID, user), time.monotonic() + 30),
            FIRST: lambda user: peers[0](APP_ID, ROOM_ID, user),
            SECOND: lambda user: peers[1](APP_ID, ROOM_ID, user),
            FLOOR: floor,
        }
        with quiet():
            found = least(works, turns)
            publish_metrics()
        return found


def main() -> None:
    """Print both."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for what, found in (("signature", signing()), ("call", calling())):
        for name, seconds in found.items():
            print(f"{what:10} {name:22} {seconds * 1e6:7.1f} us, ours {found[OURS] / seconds:5.2f} of it")


if __name__ == "__main__":
    main()
