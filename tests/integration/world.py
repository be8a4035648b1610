"""The world that the fault campaign breaks: the vendor and AWS on loopback, and the functions in this process.

The functions have the environment and the time-outs of the template. One world to a process: the environment, the
resolver and the output belong to the whole process.
"""

import contextlib
import copy
import importlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import SimpleNamespace
from typing import Any
from uuid import uuid4
from weakref import WeakSet

from stream_state.adapters.queues import RetryQueue
from stream_state.domain.merging import from_lists
from stream_state.domain.states import state_of
from stream_state.errors import StreamStateError
from tests.e2e.schemas import conforms
from tests.integration.consumer import Consumer
from tests.integration.tls import make_certificate
from tests.sandbox import simulator as simulator_module
from tests.sandbox.aws import Aws
from tests.sandbox.functions import REGION
from tests.sandbox.server import Answer, LoopbackServer, Request, Response
from tests.sandbox.signatures import CALLBACK_KEY, Keys
from tests.sandbox.simulator import APP_ID, MEDIA, Exchange, Fault, Simulator
from tests.sandbox.template import Template
from tests.unit.callback_world import fields, sign, text

REPOSITORY = Path(__file__).parents[2]
MODULES = {name: f"functions.{name}.app" for name in ("api", "task", "sweep", "callback")}
# Of the shape that the vendor's codes have, so that nothing but their being secret keeps them from being shown.
KEYS = Keys("CANARYaccess0123456789", "CANARYsecret0123456789", "CANARYtoken0123456789")
SECRET = {name: getattr(KEYS, name) for name in ("access_key_id", "secret_access_key", "session_token")}
AWS_SECRET = "CANARYaws0123456789"
CANARIES = (*SECRET.values(), CALLBACK_KEY, AWS_SECRET)
# Only a signature and its canonical request hold these.
SIGNED = ("HMAC-SHA256", "Credential=", "SignedHeaders", "x-content-sha256", "AWS4-")
# A sweep's usual quarter of an hour would be the campaign's too.
SWEEP_SECONDS = 20
VENDOR_WAITS_SECONDS = 5
# The context of an invocation, besides its time.
CONTEXT = dict.fromkeys(("aws_request_id", "function_name", "memory_limit_in_mb", "invoked_function_arn"), "campaign")

ROOM = "class-1"
# The first publishes everything throughout. The last is there only after the change.
WATCHED = ("teacher", "guest", "host", "late")
# Of the others only events speak, or events and then a recheck.
LEAVER = "leaver"
BY_EVENTS = {"event": "pupil", "kept event": "assistant", "leave": LEAVER}
BEFORE: dict[str, tuple[str, ...]] = {"teacher": tuple(MEDIA), "guest": (), "host": ("Video",), LEAVER: ("Audio",)}
AFTER = BEFORE | {"guest": ("Video",), "host": ("Audio",), "late": ("Audio", "ScreenVideo")}
TARGETS = [{"room_id": ROOM, "user_id": user} for user in WATCHED]
# The leave is dated so long ago that a recheck at once counts, and so soon after the start that it leaves a doubt.
STARTED_MS_AGO, LEFT_MS_AGO = 20_000, 18_000


def on(media: Iterable[str]) -> set[str]:
    """The project's names of the vendor's media."""
    return {MEDIA[medium] for medium in media}


# The media for which the vendor has answered 0 at some time, and those for which it does after the change.
NOW_OFF = {user: set(MEDIA.values()) - on(AFTER[user]) for user in AFTER}
EVER_OFF = {user: off | (set(MEDIA.values()) - on(BEFORE.get(user, tuple(MEDIA)))) for user, off in NOW_OFF.items()}


class Pass(Exception):
    """Raised by a fault of AWS that lets the call through; `answered` is False if its answer gets lost."""

    def __init__(self, *, answered: bool = True) -> None:
        super().__init__()
        self.answered = answered


# The fault that a call of AWS meets, if any; the operation is named as in "UpdateItem", and the call says besides its
# parameters whether its connection is `kept` from before the fault, and which part of a state record is `written`.
AwsFault = Callable[[str, Mapping[str, Any]], Fault | None]


class Wire:
    """Stands before AWS, and lets faults replace, cut or lose its answers."""

    def __init__(self, world: "FaultyWorld", answer: Answer) -> None:
        self._world = world
        self._carry_out = answer
        self._records: dict[tuple[str, str], Mapping[str, Any]] = {}

    def __call__(self, request: Request, connection: socket.socket) -> Response | None:
        world = self._world
        operation = request.header("X-Amz-Target").rpartition(".")[2]
        call = json.loads(request.body or b"{}")
        # A recheck comes at once: the events that ask for one are old enough.
        if call.pop("DelaySeconds", None) is not None:
            request = replace(request, body=json.dumps(call).encode())
            call["DelaySeconds"] = 1
        is_own = not (world.is_faulty and operation)
        more = {"kept": connection in world.kept, "written": self._written(call.get("Item", {}))}
        fault = None if is_own else world.aws_fault(operation, {**call, **more})
        if not fault:
            world.connections.add(connection)
            return self._carried_out(request, connection)
        token = object()
        world.under_way.add(token)
        try:
            response = fault(Exchange(request, {}, 200, {}, connection))
        except Pass as passed:
            response = self._carried_out(request, connection)
            response = response if passed.answered else None
        finally:
            world.under_way.discard(token)
        if response:
            # The client may have gone.
            with contextlib.suppress(OSError):
                connection.sendall(response.wire())
        return None

    def _carried_out(self, request: Request, connection: socket.socket) -> Response | None:
        """The answer of AWS; of a PutItem that was not refused the state record is remembered."""
        response = self._carry_out(request, connection)
        if response and response.status == HTTPStatus.OK:
            self._remember(json.loads(request.body or b"{}").get("Item", {}))
        return response

    def begin(self, items: Iterable[Mapping[str, Any]]) -> None:
        """Take these items as all that are stored."""
        self._records.clear()
        for item in items:
            self._remember(item)

    def _remember(self, item: Mapping[str, Any]) -> None:
        if "observations" in item:
            self._records[item["pk"]["S"], item["sk"]["S"]] = item

    def _written(self, item: Mapping[str, Any]) -> str:
        """The part of the stored state record that a PutItem changes: `observations`, or else a mark."""
        if "observations" not in item:
            return ""
        if item["observations"]["S"] == "{}":
            # A record of which the instance knows nothing is written to mark that a workflow waits.
            return "has_waits"
        before = self._records.get((item["pk"]["S"], item["sk"]["S"]))
        if before is None or item["observations"] != before["observations"]:
            return "observations"
        if item["delivered_sequence"] != before["delivered_sequence"]:
            return "delivered_sequence"
        if item["has_waits"]["BOOL"]:
            return "has_waits"
        return "no waits" if before["has_waits"]["BOOL"] else "observations"


@dataclass
class Evidence:
    """The effects of one fault, besides the kinds of the answers."""

    shown: list[Any] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def false_offs(self, *, absent: bool) -> list[str]:
        """Each state shown that is off without a 0 of the vendor, or, if the vendor does not say absent, absent."""
        found = []
        for state in _states(self.shown):
            user, source = state["user_id"], state.get("source")
            off = {medium for medium, value in state["media"].items() if value is False}
            # The message of a query that the vendor answered before the change may come after it.
            is_answer = source == "query" and "sequence" not in state
            if off - (NOW_OFF if is_answer else EVER_OFF).get(user, set()):
                found.append(f"{user} {sorted(off)} {source}")
            if state["present"] is False and user != "late" and not absent:
                found.append(f"{user} absent")
        return found

    def leaks(self, log: str, signatures: Iterable[str]) -> list[str]:
        """Each secret that was shown anywhere."""
        everything = (json.dumps(self.shown, default=repr) + log).lower()
        return [part for part in {*CANARIES, *SIGNED, *signatures} if part.lower() in everything]


def _states(value: Any) -> Iterator[dict[str, Any]]:
    """Every answer or message in a value."""
    if isinstance(value, dict):
        if "media" in value and "user_id" in value:
            yield value
        value = list(value.values())
    for part in value if isinstance(value, list) else ():
        yield from _states(part)


class FaultyWorld:
    """Everything, in a settled state: the states before the change are stored and delivered."""

    def __init__(self) -> None:
        self.simulator = Simulator()
        self.simulator.rotate(KEYS)
        self.aws = Aws(REGION, lambda request: Response(404))
        self._wire = self.aws.server.answer = Wire(self, self.aws.server.answer)
        self.connections: WeakSet[socket.socket] = WeakSet()
        self.kept: frozenset[socket.socket] = frozenset()
        self.is_faulty, self.met = False, 0
        # Tokens of the faults that hold something up now.
        self.under_way = set[object]()
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 (open for as long as the process)
        for stream in (1, 2):
            os.dup2(self._log.fileno(), stream)
        own = {
            "AWS_ENDPOINT_URL": self.aws.url,
            "AWS_EC2_METADATA_DISABLED": "true",
            **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), REGION),
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), AWS_SECRET),
            "NO_PROXY": "127.0.0.1",
            "POWERTOOLS_LOG_LEVEL": "DEBUG",
            "RTC_CONNECT_TIMEOUT": "0.3",
            "RTC_READ_TIMEOUT": "0.3",
        }
        os.environ.update(own)
        given = {"RtcAppIds": APP_ID, "RtcEndpoint": self.simulator.url, "RtcQps": "60", "EnableCallbacks": "true"}
        template = Template(REPOSITORY / "template.yaml", given, "campaign", self.aws)
        functions = template.functions(own).items()
        self._functions = {name.removesuffix("Function").lower(): function for name, function in functions}
        self.outputs = template.outputs
        self._usual = dict(os.environ)
        self._clients = {name: self.aws.client(name) for name in ("dynamodb", "sqs", "secretsmanager")}
        self._retry_queue_url = self._functions["callback"].environment["CALLBACK_RETRY_QUEUE_URL"]
        self.ports = _ports() | {"aws": self.aws.server.server_address[1], "vendor": self.simulator.server_address[1]}
        self._take_over()
        self._stored: list[Any] = []
        self.consumer = self._delivered = Consumer()
        self.begin()
        self.set_truth(BEFORE)
        assert self.use("post watches") == {"answer"}
        assert self.use("sweep watched") == {"answer"}
        # A workflow waits for what is going to change.
        assert self.use("round") == {"answer"}
        self._take_messages()
        self._stored = [item for item in self._items() if item["pk"]["S"] != "limiter"]
        self._delivered = self.consumer

    def _take_over(self) -> None:
        """Put the world's own resolver in place of the process's; clients of AWS pause only where time is short."""
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *more: Any, **options: Any) -> Any:
            if self.is_faulty:
                token = object()
                self.under_way.add(token)
                try:
                    self.resolve(str(host), int(port))
                finally:
                    self.under_way.discard(token)
            own = isinstance(host, str) and host.endswith(".localhost")
            return real("127.0.0.1" if own else host, port, *more, **options)

        socket.getaddrinfo = getaddrinfo
        endpoint: Any = importlib.import_module("botocore.endpoint")
        sleep = lambda seconds: time.sleep(seconds if self.pauses else 0)  # noqa: E731 (short)
        endpoint.time = SimpleNamespace(sleep=sleep, time=time.time)

    # Before a fault

    def begin(self) -> None:
        """Bring everything into the state before the change."""
        self.calm()
        self._write([{"DeleteRequest": {"Key": {key: item[key] for key in ("pk", "sk")}}} for item in self._items()])
        self._write([{"PutRequest": {"Item": item}} for item in self._stored])
        self._wire.begin(self._stored)
        for url in (self.outputs["ResultsQueueUrl"], self._retry_queue_url):
            self._receive(url)
        self.simulator.arrivals.clear()
        self.evidence, self.consumer, self._refused = Evidence(), copy.deepcopy(self._delivered), list[str]()
        self._log_from = os.fstat(self._log.fileno()).st_size

    def put_secret(self, value: object, output: str = "SigningKeysSecretArn") -> None:
        """Store a secret: an object as JSON, or text as it is."""
        secret = value if isinstance(value, str) else json.dumps(value)
        self._clients["secretsmanager"].put_secret_value(SecretId=self.outputs[output], SecretString=secret)

    def set_truth(self, truth: Mapping[str, Iterable[str]]) -> None:
        self.simulator.rooms.clear()
        for user, media in truth.items():
            self.simulator.publish(ROOM, user, *media)

    def calm(self) -> None:
        """End every fault; functions start cold again, with their secrets and all their time."""
        self.is_faulty = self.pauses = False
        while self.under_way:
            time.sleep(0.01)
        self.aws_fault: AwsFault = lambda operation, call: None
        self.resolve: Callable[[str, int], None] = lambda host, port: None
        self.simulator.fault = lambda exchange: None
        self.simulator.next_faults.clear()
        self.simulator.calls_per_second = None
        simulator_module.time = time  # type: ignore[attr-defined]  # its clock may have been another
        self.seconds: float | None = None
        self.start_cold({})
        self.simulator.rotate(KEYS)
        self.put_secret(SECRET)
        self.put_secret({"callback_key": CALLBACK_KEY}, "CallbackKeySecretArn")

    def start_cold(self, environment: Mapping[str, str]) -> None:
        """Let the next invocation of each function be a cold start with these variables over its own."""
        self.environment = {name: value.format(**self.ports) for name, value in environment.items()}
        self._modules: dict[str, Any] = {}
        RetryQueue.from_settings.cache_clear()

    def close_kept(self) -> None:
        """Close the connections of AWS that are kept now, while they are idle."""
        for connection in tuple(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    # The ways in

    def use(self, way: str) -> set[str]:
        """The kinds of the answers to a way in."""
        kinds, limit = WAYS[way](self)
        return kinds if self._took <= limit else {"no answer in time"}

    def _invoke(self, name: str, event: Any) -> tuple[Any, str | None, float]:
        """A function's answer, the kind of the error that it raises, and the seconds that it had."""
        seconds = self.seconds or min(self._functions[name].timeout_seconds, SWEEP_SECONDS + 9)
        if name not in self._modules:
            os.environ.clear()
            os.environ.update({**self._usual, **self._functions[name].environment, **self.environment})
            is_loaded = MODULES[name] in sys.modules
            module = importlib.import_module(MODULES[name])
            self._modules[name] = importlib.reload(module) if is_loaded else module
        started = time.monotonic()
        remaining = lambda: max(int((started + seconds - time.monotonic()) * 1000), 0)  # noqa: E731 (short)
        try:
            context = SimpleNamespace(**CONTEXT, get_remaining_time_in_millis=remaining)
            answer = self._modules[name].lambda_handler(event, context)
        except StreamStateError as error:
            self.evidence.shown.append(str(error))
            return None, kind_of(error.problem()), seconds
        except Exception as error:  # noqa: BLE001 (this is what the campaign looks for)
            self.evidence.shown.append(repr(error))
            return None, f"unhandled {type(error).__name__}", seconds
        finally:
            self._took = time.monotonic() - started
        self.evidence.shown.append(answer)
        return answer, None, seconds

    def http(self, method: str, route: str, body: object = None, **query: str) -> tuple[set[str], float]:
        """A request to the API about the guest."""
        event = _request("api/get-http-api.json", method, route, body or {}) | {
            "queryStringParameters": query,
            "pathParameters": {"room_id": ROOM, "user_id": "guest"},
        }
        answer, raised, seconds = self._invoke("api", event)
        if raised:
            return {raised}, seconds
        document = json.loads(answer["body"] or "{}")
        self.evidence.shown.append(document)
        kinds = {kind_of(result) for result in document.get("results", [document])} or {"answer"}
        # Of one target the status is the problem's.
        is_right = answer["statusCode"] in ({document["status"]} if "error" in document else {200, 204})
        return kinds if is_right else {*kinds, "wrong status"}, seconds

    def task(self) -> tuple[set[str], float]:
        """One target for the queue."""
        answer, raised, seconds = self._invoke("task", {**TARGETS[1], "deliver": "queue"})
        return {raised or kind_of(answer)}, seconds

    def begin_round(self) -> tuple[set[str], float]:
        """A round of a workflow that waits; nobody waits for its token, so that whoever answers it finds it dead."""
        times = {"started_at": datetime.now(UTC).isoformat(), "timeout_seconds": 3600, "interval_seconds": 3600}
        wait = {**TARGETS[1], "until": {"medium": "video", "publishing": True, **times}}
        answer, raised, seconds = self._invoke("task", {"wait": wait, "wait_id": "execution", "token": "token"})
        return {raised or kind_of(answer)}, seconds

    def sweep(self, event: dict[str, Any]) -> tuple[set[str], float]:
        """A sweep; each of given targets must come to be a message, unless nothing changed."""
        summary, raised, seconds = self._invoke("sweep", event)
        problems = self._take_messages()
        if raised:
            return {raised}, seconds
        kinds = {kind_of(failure["problem"]) for failure in summary["failures"]}
        done = summary["delivered"] + summary["unchanged"]
        if "targets" in event:
            kinds |= set(problems)
            if (missing := len(TARGETS) - done - len(problems)) > 0:
                self.evidence.lost.append(f"{missing} given targets without a message")
        elif summary["remaining"] or "skipped" in summary:
            kinds.add("remaining")
        return kinds | ({"answer"} if done else set()), seconds

    def event(self, user: str, kind: str = "UserAudioStreamStart", ago_ms: int = 0, **data: str) -> str:
        """The text of a callback event."""
        at_ms = int(time.time() * 1000) - ago_ms
        return text(sign(fields(kind, at_ms, user_id=user, **data), CALLBACK_KEY))

    def post(self, *bodies: str) -> tuple[set[str], float]:
        """Send callback events, one after the other, as the vendor, who waits for five seconds for each."""
        return {self._post(body) for body in bodies}, VENDOR_WAITS_SECONDS

    def leave(self) -> tuple[set[str], float]:
        """Events that leave a doubt: a leave so soon after a start may be of an earlier connection."""
        start = self.event(LEAVER, ago_ms=STARTED_MS_AGO)
        return self.post(start, self.event(LEAVER, "UserLeaveRoom", LEFT_MS_AGO, Reason="userLeave"))

    def _post(self, body: str) -> str:
        event = _request("callback/stream-start-http-api.json", "POST", "/callbacks/rtc", None) | {"body": body}
        before = self._messages_kept()
        answer, raised, _ = self._invoke("callback", event)
        if self._took > VENDOR_WAITS_SECONDS:
            return "no answer in time"
        if not raised and answer["statusCode"] == 200:
            return "received"
        self._refused.append(body)
        kind = raised or kind_of(json.loads(answer["body"]))
        is_unverified = kind == "CredentialsUnavailable"
        return "kept unverified" if is_unverified and self._messages_kept() > before else kind

    def hand_on(self, body: str) -> tuple[set[str], float]:
        """Hand a message of the retry queue to the function, as Lambda does; if it fails, it stays in the queue."""
        record = {"messageId": str(uuid4()), "body": body, "messageAttributes": {}, "eventSource": "aws:sqs"}
        sent = {"ApproximateReceiveCount": "1", "SentTimestamp": str(int(time.time() * 1000))}
        answer, raised, seconds = self._invoke("callback", {"Records": [record | {"attributes": sent}]})
        if not raised and not answer["batchItemFailures"]:
            return {"received"}, seconds
        with self._aside():
            self._clients["sqs"].send_message(QueueUrl=self._retry_queue_url, MessageBody=body)
        return {raised or "item failure"}, seconds

    def recheck(self) -> tuple[set[str], float]:
        """A recheck for which a record asks."""
        target, due_ms = TARGETS[1], int(time.time() * 1000)
        with self._aside():
            records = [item for item in self._items() if item.get("user_id", {}).get("S") == target["user_id"]]
            asking = [item | {"recheck_at_ms": {"N": str(due_ms)}} for item in records if "observations" in item]
            self._write([{"PutRequest": {"Item": item}} for item in asking])
        return self.hand_on(json.dumps({"recheck": {"app_id": APP_ID, **target}, "due_ms": due_ms}))

    # After a fault

    def settle(self) -> None:
        """When all is well again: the vendor's next try, the retry queue, and one sweep."""
        self.calm()
        # As if the minute had passed for which calls are held, a dead sweep holds the lease, and rechecks may be late.
        keys = [("limiter", "rtc"), ("sweep", "lease")]
        self._write([{"DeleteRequest": {"Key": {"pk": {"S": pk}, "sk": {"S": sk}}}} for pk, sk in keys])
        listed = [item for item in self._items() if "undelivered" in item]
        self._write([{"PutRequest": {"Item": item | {"deliver_after": {"N": "0"}}}} for item in listed])
        refused, self._refused = self._refused, []
        self.evidence.lost += [f"event {kind}" for body in refused if (kind := self._post(body)) != "received"]
        self.use("post watches")
        if (kinds := self.use("sweep watched")) != {"answer"}:
            self.evidence.lost.append(f"the sweep after it: {sorted(kinds)}")
        while messages := self._receive(self._retry_queue_url):
            if any(self.hand_on(message["Body"])[0] != {"received"} for message in messages):
                self.evidence.lost.append("a message of the retry queue")
                break
        self._take_messages()
        self.evidence.shown += [_state_of(item) for item in self._items() if "observations" in item]

    def compare(self, ways: Iterable[str]) -> None:
        """The states that the consumer of the queue keeps now must be the truth."""
        truth: dict[str, Any] = {user: {name: name in on(AFTER[user]) for name in MEDIA.values()} for user in AFTER}
        by_events = {user: {**dict.fromkeys(MEDIA.values()), "audio": True} for user in BY_EVENTS.values()}
        used = [user for way, user in BY_EVENTS.items() if way in ways]
        for user in (*WATCHED, *used):
            kept = self.consumer.kept.get((ROOM, user), {"media": None})
            if kept["media"] != truth.get(user, by_events.get(user)):
                self.evidence.lost.append(f"{user} is {kept['media']}")

    @property
    def log(self) -> str:
        """All that was written to stdout and stderr since the fault began."""
        sys.stdout.flush()
        end = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), end - self._log_from, self._log_from).decode(errors="replace")

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """The world's own calls meet no fault."""
        was_faulty, self.is_faulty = self.is_faulty, False
        yield
        self.is_faulty = was_faulty

    def _take_messages(self) -> list[str]:
        """Pass the messages of the results queue to the consumer; the kinds of the problems among them."""
        with self._aside():
            taken = [self.consumer.take(message["Body"]) for message in self._receive(self.outputs["ResultsQueueUrl"])]
        for message in taken:
            conforms("message", message)
        self.evidence.shown += taken
        return [kind_of(message["problem"]) for message in taken if "problem" in message]

    def _receive(self, url: str) -> list[dict[str, Any]]:
        sqs, received = self._clients["sqs"], []
        while batch := sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages"):
            received += batch
            for message in batch:
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return received

    def _messages_kept(self) -> int:
        with self._aside():
            names = ["ApproximateNumberOfMessages"]
            answer = self._clients["sqs"].get_queue_attributes(QueueUrl=self._retry_queue_url, AttributeNames=names)
        return int(answer["Attributes"][names[0]])

    def _items(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._clients["dynamodb"].scan(TableName=self.outputs["StateTableName"])["Items"]
        return items

    def _write(self, requests: list[Any]) -> None:
        if requests:
            self._clients["dynamodb"].batch_write_item(RequestItems={self.outputs["StateTableName"]: requests})


def _request(sample: str, method: str, path: str, body: object) -> dict[str, Any]:
    """A sample event of API Gateway, as of another route."""
    event: dict[str, Any] = json.loads((REPOSITORY / "events" / sample).read_text())
    event["requestContext"]["http"] |= {"method": method, "path": path}
    return event | {"routeKey": f"{method} {path}", "rawPath": path, "body": json.dumps(body)}


def kind_of(document: Mapping[str, Any]) -> str:
    """An answer, or the error's name, with a status that is not its usual one; or that it breaks its schema."""
    name = "problem" if "error" in document else "message" if "message_id" in document else "answer"
    if name == "problem" or document.get("type") == "stream_state":
        try:
            conforms(name, {key: value for key, value in document.items() if key != "message_id"})
        except Exception:  # noqa: BLE001 (whatever the validator raises)
            return "against the schema"
    if name != "problem":
        return "answer"
    error, status = document["error"], document["status"]
    return str(error) if status == STATUS.get(error) else f"{error} {status}"


# The status of each error; where the time was up RtcUnavailable has 504, which is then part of its kind.
STATUS: dict[str, int] = {
    "InvalidRequest": 400,
    "TargetNotFound": 404,
    **dict.fromkeys(("QuotaExceeded", "RtcThrottled"), 429),
    "CredentialsInvalid": 500,
    **dict.fromkeys(("RtcAccessDenied", "RtcRequestRefused", "RtcActionRetired", "RtcProtocolError"), 502),
    **dict.fromkeys(("CredentialsUnavailable", "StateUnavailable", "DeliveryFailed", "RtcUnavailable"), 503),
}


def _state_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a stored record, in the form of an answer."""
    values = state_of(from_lists(json.loads(item["observations"]["S"]))).values
    present = values.pop("present")
    return {"user_id": item["user_id"]["S"], "media": values, "present": present, "source": "table"}


def _listen(answers: bytes | None) -> int:
    """The port of a server that answers so and closes; None: it is silent until the client goes away."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                while self.request.recv(4096) and answers is None:
                    pass
                self.request.sendall(answers or b"")

    server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def _ports() -> dict[str, int]:
    """Ports without a server, or with one that never accepts, or that speaks no TLS or none worth trusting."""
    closed, secure = LoopbackServer(lambda request, connection: None), Simulator()
    closed.stop()
    with tempfile.TemporaryDirectory() as directory:
        context = make_certificate(Path(directory) / "localhost.pem")
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    _KEPT.extend([full, *(socket.socket() for _ in range(4))])
    for waiting in _KEPT[1:]:
        waiting.setblocking(False)  # noqa: FBT003 (the socket's own name for it)
        waiting.connect_ex(full.getsockname())
    return {
        "closed": closed.server_address[1],
        "full": full.getsockname()[1],
        "silent": _listen(None),
        "hangs_up": _listen(b""),
        "alert": _listen(b"\x15\x03\x03\x00\x02\x02\x28"),
        "self_signed": secure.server_address[1],
    }


_KEPT: list[socket.socket] = []
STATE, WATCH = "/rooms/{room_id}/users/{user_id}/stream-state", "/rooms/{room_id}/users/{user_id}/watch"
# Each way in: the kinds of the answers, and the seconds in which they had to come.
WAYS: dict[str, Callable[[FaultyWorld], tuple[set[str], float]]] = {
    "ask": lambda world: world.http("GET", STATE),
    "ask by age": lambda world: world.http("GET", STATE, max_age="3600"),
    "query": lambda world: world.http("POST", "/stream-states/query", {"targets": TARGETS}),
    "query room": lambda world: world.http("POST", "/stream-states/query", {"targets": [{"room_id": ROOM}]}),
    "sweep room": lambda world: world.sweep({"room_id": ROOM, "emit": "all"}),
    "list room": lambda world: world.http("GET", "/rooms/{room_id}/stream-states"),
    "put watch": lambda world: world.http("PUT", WATCH),
    "delete watch": lambda world: world.http("DELETE", WATCH),
    "post watches": lambda world: world.http("POST", "/watches", {"targets": TARGETS}),
    "list watches": lambda world: world.http("GET", "/watches"),
    "task": lambda world: world.task(),
    "round": lambda world: world.begin_round(),
    "sweep given": lambda world: world.sweep({"targets": TARGETS, "emit": "changes"}),
    "sweep watched": lambda world: world.sweep({}),
    "event": lambda world: world.post(world.event(BY_EVENTS["event"])),
    "kept event": lambda world: world.hand_on(world.event(BY_EVENTS["kept event"])),
    "leave": lambda world: world.leave(),
    "recheck": lambda world: world.recheck(),
}
