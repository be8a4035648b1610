"""Keys and tokens that the vendor echoes, wherever it puts them, are never shown."""

import io
import json
import traceback
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
import requests

from stream_state.errors import StreamStateError
from stream_state.model import Target, problem_message
from stream_state.observability import log_error, publish_metrics
from stream_state.rtc import RtcClient
from stream_state.signing import SigningKeys
from tests.sandbox.static_keys import StaticKeys
from tests.unit.fakes import FakeAdapter, Reply

CANARIES = ("CANARY-ACCESS-KEY", "CANARY-SECRET-KEY==", "CANARY/SESSION+TOKEN")
IDS = {"RoomId": "class-1", "UserId": "teacher"}
METADATA = {"RequestId": "20261123AB"}


def failing(canary: str, place: str, code: str = "InternalError") -> dict[str, Any]:
    error = {"CodeN": 0, "Code": code, "Message": "No.", **({place: canary} if place in {"Code", "Message"} else {})}
    request_id = canary if place == "RequestId" else "20261123AB"
    return {"ResponseMetadata": {"RequestId": request_id, "Error": error}, "Result": {}}


def succeeding(canary: str, **changes: object) -> dict[str, Any]:
    told = {**IDS, "StreamStates": [{"MediaType": canary, "State": canary}, {"MediaType": "Audio", "State": canary}]}
    return {"ResponseMetadata": METADATA, "Result": {**told, **changes}}


# Where an answer, or an error of the libraries below, can hold what must not be shown.
PLACES: dict[str, Callable[[str], Reply | Exception]] = {
    "code, not listed": lambda canary: Reply(400, failing(canary, "Code")),
    "code, listed": lambda canary: Reply(400, failing(f"InvalidParameter.{canary}", "Code")),
    "code of a server error": lambda canary: Reply(500, failing(f"InternalError.{canary}", "Code")),
    "message": lambda canary: Reply(401, failing(canary, "Message", "InvalidAccessKey")),
    "message of a retry": lambda canary: Reply(503, failing(canary, "Message")),
    "message of a denial": lambda canary: Reply(403, failing(canary, "Message", "LackPolicy")),
    "request id of an error": lambda canary: Reply(400, failing(canary, "RequestId", "LackPolicy")),
    "request id of a success": lambda canary: Reply(
        200, succeeding(canary) | {"ResponseMetadata": {"RequestId": canary}}
    ),
    "request id with more": lambda canary: Reply(
        200, succeeding(canary) | {"ResponseMetadata": {"RequestId": f"a-{canary}"}}
    ),
    "another user": lambda canary: Reply(200, succeeding(canary, UserId=canary)),
    "media": lambda canary: Reply(200, succeeding(canary)),
    "result": lambda canary: Reply(200, {"ResponseMetadata": METADATA, "Result": canary}),
    "metadata": lambda canary: Reply(200, {"ResponseMetadata": canary, "Result": canary}),
    "error": lambda canary: Reply(200, {"ResponseMetadata": {"Error": canary}, "Result": canary}),
    "body": lambda canary: Reply(200, canary.encode()),
    "page": lambda canary: Reply(502, f"<html>{canary}</html>".encode()),
    "headers": lambda canary: Reply(429, b"", {"Retry-After": canary, "X-Echo": canary, "Location": canary}),
    "redirect": lambda canary: Reply(302, b"", {"Location": f"https://elsewhere/{canary}"}),
    "time-out": lambda canary: requests.ReadTimeout(f"GET /?{canary}"),
    "tls": requests.exceptions.SSLError,
    "network": requests.ConnectionError,
}


def shapes(canary: str) -> list[str]:
    return [canary, quote(canary, safe=""), f"Authorization: HMAC-SHA256 Credential={canary}/20261123, Signature=ab"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("canary", CANARIES)
def test_what_the_vendor_echoes_is_shown_nowhere(
    make_rtc: Callable[[Any], RtcClient],
    adapter: FakeAdapter,
    target: Target,
    logs: io.StringIO,
    capsys: pytest.CaptureFixture[str],
    canary: str,
    place: str,
) -> None:
    for shape in shapes(canary):
        adapter.answer(PLACES[place](shape))
        rtc = make_rtc(StaticKeys(SigningKeys(*CANARIES)))
        try:
            state = rtc.stream_state(target, 1_030.0)
            told = [repr(state), json.dumps(state.answer())]
        except StreamStateError as error:
            log_error(error, target)
            told = [str(error), repr(error), *traceback.format_exception(error)]
            told += [json.dumps(error.problem()), json.dumps(problem_message(target, error, 0))]
        publish_metrics()

        shown = f"{told}{logs.getvalue()}{capsys.readouterr().out}"
        assert "RtcCalls" in shown
        assert "CANARY" not in shown


def test_keys_that_are_refused_are_shown_neither_in_the_client_nor_in_what_holds_them() -> None:
    keys = SigningKeys(*CANARIES)

    assert "CANARY" not in f"{keys!r}{keys}{StaticKeys(keys)!r}{[keys]}"
