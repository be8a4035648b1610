"""Clients of AWS services, made by botocore: boto3 would load what it needs for S3 at each cold start."""

import json
from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from typing import Any

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

_CONFIG: Mapping[str, Any] = {
    # botocore would join its own name from thirty parts for each request, a tenth of a call's processor time.
    "user_agent": "stream-state-for-volcengine-rtc",
    # AWS checks what it is sent: botocore need not do so before.
    "parameter_validation": False,
}


class MalformedAnswer(BotoCoreError):
    """What came is no answer of AWS."""

    fmt = "AWS's answer was not understood."


def client(service: str, **options: Any) -> Any:
    """A client with the options of botocore's `Config`; it serves many threads, making it does not.

    It understands nothing where nothing was said: botocore reads HTML as an empty answer.
    """
    made = _session().create_client(service, config=Config(**_CONFIG, **options))
    made.meta.events.register("before-parse", _check_answer)
    return made


@cache
def _session() -> botocore.session.Session:
    """One for all clients: it keeps the descriptions of services that it has read."""
    return botocore.session.get_session()


def _check_answer(response_dict: dict[str, Any], **_: Any) -> None:
    try:
        answer = json.loads(response_dict["body"])
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or not isinstance(answer.get("__type", ""), str):
        if response_dict["status_code"] == HTTPStatus.OK:
            raise MalformedAnswer
        # The status alone then says what kind of error it is, and whether to try again.
        response_dict["body"] = b""
