"""Stand-ins for time, HTTP, Secrets Manager and SQS that tests own."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import requests
from botocore.exceptions import ClientError
from requests.adapters import BaseAdapter

from stream_state.adapters.rate_limiter import RateLimiter
from stream_state.clock import Clock as SystemClock

# 2026-11-23T03:04:05.678Z
WALL_SECONDS = 1_795_403_045.678


class Clock(SystemClock):
    """Time that only sleeping or a test moves on; jitter is always the longest."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []
        self.jitters: list[tuple[float, float]] = []

    def monotonic(self) -> float:
        """Time of no particular origin; reading it takes a microsecond."""
        self.seconds += 1e-6
        return self.seconds

    def now(self) -> float:
        """Seconds since 1970."""
        return WALL_SECONDS + self.seconds - 1000

    def sleep(self, seconds: float) -> None:
        """Pass the time at once."""
        self.slept.append(seconds)
        self.seconds += seconds

    def jitter(self, low: float, high: float) -> float:
        """The longest pause."""
        self.jitters.append((low, high))
        return high


@dataclass(frozen=True)
class Reply:
    """An HTTP response; a body that is not bytes is sent as JSON."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Script[T]:
    """Answers in their order, the last one for good; one that is an exception is raised."""

    def __init__(self, *answers: T | Exception | Callable[[], T]) -> None:
        self.answers = list(answers)

    def next(self) -> T:
        """The next answer."""
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer


class FakeAdapter(BaseAdapter):
    """An adapter of `requests` that answers from a script and records what it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.script: Script[Reply] = Script(Reply())
        self.requests: list[requests.PreparedRequest] = []
        self.options: list[Mapping[str, Any]] = []

    def answer(self, *replies: Reply | Exception | Callable[[], Reply]) -> None:
        """Replace the script."""
        self.script = Script(*replies)

    def send(self, request: requests.PreparedRequest, *_: Any, **options: Any) -> requests.Response:
        """The scripted response."""
        self.requests.append(request)
        self.options.append(options)
        reply = self.script.next()
        body = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        response = requests.Response()
        response.status_code, response.raw = reply.status, io.BytesIO(body)
        response.headers.update(reply.headers)
        return response

    def close(self) -> None:
        """There is nothing to close."""


class FreeLimiter(RateLimiter):
    """A limiter that has a slot for everyone, and counts them."""

    def __init__(self) -> None:
        self.slots = 0

    def acquire(self, deadline: float) -> None:
        """See `RateLimiter`."""
        self.slots += 1

    def hold(self, seconds: float) -> None:
        """See `RateLimiter`."""


class FakeSecrets:
    """Secrets Manager with one secret, whose values come from a script."""

    def __init__(self, *values: str | dict[str, Any] | Exception | Callable[[], Any]) -> None:
        self.script: Script[Any] = Script(*values)
        self.reads = 0

    def get_secret_value(self, *, SecretId: str) -> dict[str, Any]:  # noqa: N803 (as boto3 names it)
        """The value, as boto3 returns it; JSON of an object, or the text itself."""
        self.reads += 1
        value = self.script.next()
        return {"SecretString": json.dumps(value) if isinstance(value, dict) else value}


class FakeQueue:
    """SQS that takes every message, unless the script decides otherwise for a batch."""

    def __init__(self) -> None:
        self.batches: list[list[dict[str, Any]]] = []
        self.urls: set[str] = set()
        self.script: Script[Callable[[Sequence[Any]], dict[str, Any]]] = Script(lambda: accepted)

    def send_message_batch(self, *, QueueUrl: str, Entries: Sequence[Any]) -> dict[str, Any]:  # noqa: N803 (as boto3 names them)
        """The scripted answer to the batch."""
        self.batches.append(list(Entries))
        self.urls.add(QueueUrl)
        return self.script.next()(Entries)


def accepted(entries: Sequence[Any]) -> dict[str, Any]:
    """SQS's answer that takes all entries."""
    return {"Successful": [{"Id": entry["Id"], "MessageId": f"id-of-{entry['Id']}"} for entry in entries]}


def refused(*ids: str, sender_fault: bool = False) -> Callable[[], Callable[[Sequence[Any]], dict[str, Any]]]:
    """A script's entry: SQS takes all entries but these."""

    def answer(entries: Sequence[Any]) -> dict[str, Any]:
        failed = [{"Id": id_, "Code": "Refused", "SenderFault": sender_fault, "Message": "canary"} for id_ in ids]
        return {**accepted([entry for entry in entries if entry["Id"] not in ids]), "Failed": failed}

    return lambda: answer


def aws_error(code: str) -> ClientError:
    """An error answer of an AWS service, whose message must not be passed on."""
    return ClientError({"Error": {"Code": code, "Message": "canary"}}, "AnyOperation")
