"""What the fault campaign breaks: the vendor and AWS on loopback, and the four functions in this process.

The functions have the environment and the time-outs of the template. One world to a process: the environment, the
resolver and the output belong to the whole process.
"""

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
from dataclasses import dataclass, field
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from types import SimpleNamespace
from typing import Any

from stream_state.errors import StreamStateError
from tests.e2e.schemas import conforms
from tests.integration.consumer import Consumer
from tests.integration.tls import make_certificate
from tests.sandbox import simulator as simulator_module
from tests.sandbox.aws import Aws
from tests.sandbox.functions import REGION
from tests.sandbox.server import LoopbackServer, Request, Response
from tests.sandbox.simulator import APP_ID, CALLBACK_KEY, MEDIA, Exchange, Fault, Keys, Simulator
from tests.sandbox.template import Template
from tests.unit.pushed import fields, sign, text

REPOSITORY = Path(__file__).parents[2]
MODULES = {name: f"functions.{name}.app" for name in ("api", "task", "sweep", "callback")}
# Of the shape that the vendor's codes have, so that nothing but their being secret keeps them from being shown.
KEYS = Keys("CANARYaccess0123456789", "CANARYsecret0123456789", "CANARYtoken0123456789")
AWS_SECRET = "CANARYaws0123456789"
CANARIES = (KEYS.access_key_id, KEYS.secret_access_key, str(KEYS.session_token), CALLBACK_KEY, AWS_SECRET)
# What only a signature and its canonical request hold.
SIGNED = ("HMAC-SHA256", "Credential=", "SignedHeaders", "x-content-sha256", "AWS4-")
# A person waits for as long as a sweep here: its usual quarter of an hour would be the campaign's too.
SWEEP_SECONDS = 20
VENDOR_WAITS_SECONDS = 5

ROOM = "class-1"
# The first publishes everything throughout. The last is there only after the change.
WATCHED = ("teacher", "guest", "host", "late")
BEFORE: dict[str, tuple[str, ...]] = {"teacher": tuple(MEDIA), "guest": (), "host": ("Video",)}
AFTER: dict[str, tuple[str, ...]] = {
    "teacher": tuple(MEDIA),
    "guest": ("Video",),
    "host": ("Audio",),
    "late": ("Audio", "ScreenVideo"),
}
# Of these only events tell, that they speak.
PUSHED = ("pupil", "parked")
TARGETS = [{"room_id": ROOM, "user_id": user} for user in WATCHED]


def on(media: Iterable[str]) -> set[str]:
    """The names of ours for the vendor's media."""
    return {MEDIA[medium] for medium in media}


# The media of which the vendor has said 0 at some time, and does so after the change.
EVER_OFF = {
    user: set(MEDIA.values()) - (on(BEFORE[user]) & on(AFTER[user]) if user in BEFORE else on(AFTER[user]))
    for user in WATCHED
} | {user: set() for user in PUSHED}
NOW_OFF = {user: set(MEDIA.values()) - on(AFTER[user]) for user in WATCHED}


class Pass(Exception):
    """Raised by a fault of AWS that lets the call through; `answered` is False if its answer gets lost."""

    def __init__(self, *, answered: bool = True) -> None:
        super().__init__()
        self.answered = answered


# What a call of AWS meets, if it is one that the fault is for; the operation is named as in "UpdateItem".
AwsFault = Callable[[str, Mapping[str, Any]], Fault | None]


class Wire:
    """Stands before moto: its answers are replaced, cut or lost on the connection itself."""

    def __init__(self, world: "World", application: Callable[..., Any]) -> None:
        self._world = world
        self._application = application

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        world = self._world
        operation = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        carry_out = lambda begin: self._application(environ | {"wsgi.input": _Again(body)}, begin)  # noqa: E731 (short)
        fault = world.aws_fault(operation, json.loads(body or b"{}")) if world.is_faulty and operation else None
        if fault is None:
            return carry_out(start_response)
        connection = environ["werkzeug.socket"]
        world.under_way += 1
        try:
            request = Request("POST", environ["PATH_INFO"], [], body)
            if response := fault(Exchange(request, {}, 200, {}, connection)):
                connection.sendall(response.wire())
        except Pass as passed:
            if passed.answered:
                return carry_out(start_response)
            list(carry_out(lambda *_: None))
        except OSError:
            pass  # The client has gone.
        finally:
            world.under_way -= 1
        # The server would leave the connection open.
        connection.shutdown(socket.SHUT_RDWR)
        raise ConnectionResetError


class _Again:
    """A body that was read, to be read again."""

    def __init__(self, body: bytes) -> None:
        self.read = lambda *_: body


class Context:
    """The context of an invocation, whose time runs."""

    aws_request_id = "invocation-1"
    function_name = "campaign"
    memory_limit_in_mb = 256
    invoked_function_arn = "arn:aws:lambda:eu-central-1:123456789012:function:campaign"

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return max(int((self._ends_at - time.monotonic()) * 1000), 0)


@dataclass
class Evidence:
    """What one fault came to, besides the kinds of the answers."""

    shown: list[Any] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def false_offs(self, *, absent: bool) -> list[str]:
        """Each state shown that says off, or absent if the vendor has not said so, of what it never said 0 of."""
        found = []
        for state in _states(self.shown):
            user, queried = state["user_id"], state.get("source") == "query"
            allowed = (NOW_OFF if queried and user in NOW_OFF else EVER_OFF).get(user, set())
            off = {medium for medium, value in state["media"].items() if value is False}
            # A query that the vendor answered before the change may be told after it.
            if off - (EVER_OFF.get(user, set()) if "sequence" in state else allowed):
                found.append(f"{user} {sorted(off)} {state.get('source')}")
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
    for member in value if isinstance(value, list) else ():
        yield from _states(member)


class World:
    """Everything, in a state that is known: what was before the change is stored and told."""

    def __init__(self) -> None:
        self.simulator = Simulator()
        self.simulator.calls_per_second = None
        self.simulator.rotate(KEYS)
        self.aws = Aws(REGION, lambda request: Response(404))
        self.aws._server.app = Wire(self, self.aws._server.app)
        self.is_faulty = self.pauses = False
        self.under_way = self.met = 0
        self.aws_fault: AwsFault = lambda operation, call: None
        self.resolve: Callable[[str, int], None] = lambda host, port: None
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
        self._functions = {
            name.removesuffix("Function").lower(): function for name, function in template.functions(own).items()
        }
        self.outputs = template.outputs
        self._usual = dict(os.environ)
        self._clients = {name: self.aws.client(name) for name in ("dynamodb", "sqs", "secretsmanager")}
        self._retry_queue_url = self._functions["callback"].environment["CALLBACK_RETRY_QUEUE_URL"]
        self.ports = _ports() | {"aws": self.aws._server.server_port, "vendor": self.simulator.server_address[1]}
        self._take_over()
        self._modules: dict[str, Any] = {}
        self.environment: Mapping[str, str] = {}
        self._stored: list[Any] = []
        self.consumer = self._told = Consumer()
        self.begin()
        self._set(BEFORE)
        self.seconds: float | None = None
        assert self.use("post watches") == {"answer"}
        assert self.use("sweep watched") == {"answer"}
        self._take_messages()
        self._stored, self._told = [item for item in self._items() if item["pk"]["S"] != "limiter"], self.consumer

    def _take_over(self) -> None:
        """Put the world's own resolver in place of the process's; clients of AWS pause only where time is short."""
        real = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *more: Any, **options: Any) -> Any:
            if self.is_faulty:
                self.resolve(str(host), int(port))
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
        self.seconds = None
        self._write([{"DeleteRequest": {"Key": {key: item[key] for key in ("pk", "sk")}}} for item in self._items()])
        self._write([{"PutRequest": {"Item": item}} for item in self._stored])
        for url in (self.outputs["ResultsQueueUrl"], self._retry_queue_url):
            self._receive(url, delete=True)
        self.put_secret({"access_key_id": KEYS.access_key_id, "secret_access_key": KEYS.secret_access_key})
        self.put_secret({"callback_key": CALLBACK_KEY}, "CallbackKeySecretArn")
        self.simulator.rotate(KEYS)
        self.simulator.arrivals.clear()
        self.evidence, self.consumer, self._refused = Evidence(), copy.deepcopy(self._told), list[str]()
        self._log_from = os.fstat(self._log.fileno()).st_size

    def change(self) -> None:
        """Let the vendor's truth change."""
        self._set(AFTER)

    def put_secret(self, value: object, output: str = "SigningKeysSecretArn") -> None:
        """Store a secret: an object as JSON, or text as it is; the keys get their session token."""
        if isinstance(value, dict) and "access_key_id" in value:
            value = {**value, "session_token": KEYS.session_token}
        secret = value if isinstance(value, str) else json.dumps(value)
        self._clients["secretsmanager"].put_secret_value(SecretId=self.outputs[output], SecretString=secret)

    def _set(self, truth: Mapping[str, Iterable[str]]) -> None:
        self.simulator._rooms.clear()
        for user, media in truth.items():
            self.simulator.publish(ROOM, user, *media)

    def calm(self) -> None:
        """End every fault; functions start cold again."""
        self.is_faulty = self.pauses = False
        while self.under_way:
            time.sleep(0.01)
        self.aws_fault = lambda operation, call: None
        self.resolve = lambda host, port: None
        self.simulator.fault = lambda exchange: None
        self.simulator._faults.clear()
        self.simulator.calls_per_second = None
        simulator_module.time = time  # type: ignore[attr-defined]  # its clock may have been another
        self.start_cold({})

    def start_cold(self, environment: Mapping[str, str]) -> None:
        """Let the next invocation of each function be a cold start with these variables over its own."""
        self.environment = {name: value.format(**self.ports) for name, value in environment.items()}
        self._modules = {}

    # The ways in

    def use(self, way: str) -> set[str]:
        """Use a way in, and tell of which kinds the answers are."""
        kinds, limit = WAYS[way](self)
        return kinds if self._took <= limit else {"no answer in time"}

    def _invoke(self, name: str, event: Any) -> tuple[Any, str | None, float]:
        """What a function returns, the kind of what it raises, and the seconds that it had."""
        seconds = self.seconds or min(self._functions[name].timeout_seconds, SWEEP_SECONDS + 9)
        if name not in self._modules:
            os.environ.clear()
            os.environ.update({**self._usual, **self._functions[name].environment, **self.environment})
            known = MODULES[name] in sys.modules
            module = importlib.import_module(MODULES[name])
            self._modules[name] = importlib.reload(module) if known else module
        started = time.monotonic()
        try:
            answer = self._modules[name].lambda_handler(event, Context(seconds))
        except StreamStateError as error:
            self.evidence.shown.append(str(error))
            return None, kind_of(error.problem()), seconds
        except Exception as error:  # noqa: BLE001 (this is what the campaign looks for)
            self.evidence.shown.append(repr(error))
            return None, f"unhandled {type(error).__name__}", seconds
        finally:
            self._took = time.monotonic() - started
        return answer, None, seconds

    def http(
        self, method: str, route: str, body: object = None, query: Mapping[str, str] | None = None
    ) -> tuple[set[str], float]:
        """A request to the API about the guest."""
        sample = json.loads((REPOSITORY / "events" / "api" / "get-http-api.json").read_text())
        key = {"routeKey": f"{method} {route}"}
        http = {**sample["requestContext"]["http"], "method": method, "path": route}
        event = sample | {
            **key,
            "rawPath": route,
            "requestContext": sample["requestContext"] | key | {"http": http},
            "queryStringParameters": query or {},
            "pathParameters": {"room_id": ROOM, "user_id": "guest"},
            "body": json.dumps(body or {}),
        }
        answer, raised, seconds = self._invoke("api", event)
        if raised:
            return {raised}, seconds
        document = json.loads(answer["body"] or "{}")
        self.evidence.shown.append([answer, document])
        results = document.get("results", [document])
        kinds = {kind_of(result) for result in results} or {"answer"}
        # Of one target the status is the problem's.
        if answer["statusCode"] != document.get("status", answer["statusCode"]) or (
            "error" not in document and answer["statusCode"] not in {200, 204}
        ):
            kinds.add("wrong status")
        return kinds, seconds

    def task(self, **more: object) -> tuple[set[str], float]:
        """One target for the queue."""
        answer, raised, seconds = self._invoke("task", {**TARGETS[1], "deliver": "queue", **more})
        self.evidence.shown.append(answer)
        return {raised or kind_of(answer)}, seconds

    def sweep(self, event: dict[str, Any]) -> tuple[set[str], float]:
        """A sweep; each of given targets must come to be a message, unless nothing changed."""
        summary, raised, seconds = self._invoke("sweep", event)
        self.evidence.shown.append(summary)
        self._take_messages()
        if raised:
            return {raised}, seconds
        if "skipped" in summary:
            return {"skipped"}, seconds
        kinds = {kind_of(failure["problem"]) for failure in summary["failures"]}
        done = summary["delivered"] + summary["unchanged"]
        if "targets" in event:
            kinds |= set(self.problems)
            if (missing := len(TARGETS) - done - len(self.problems)) > 0:
                self.evidence.lost.append(f"{missing} given targets without a message")
        elif summary["remaining"]:
            kinds.add("remaining")
        return kinds | ({"answer"} if done else set()), seconds

    def push(self, ago_ms: int = 0) -> tuple[set[str], float]:
        """The vendor pushes an event, and waits for five seconds."""
        return {self._post(self._event("pupil", ago_ms))}, VENDOR_WAITS_SECONDS

    def push_parked(self) -> tuple[set[str], float]:
        """An event that was parked comes from the retry queue."""
        arrived = {"arrived_at_ms": {"DataType": "Number", "StringValue": str(int(time.time() * 1000))}}
        event, calm = self._event("parked", 0), self.is_faulty
        self.is_faulty = False
        self._clients["sqs"].send_message(QueueUrl=self._retry_queue_url, MessageBody=event, MessageAttributes=arrived)
        messages = self._receive(self._retry_queue_url)
        self.is_faulty = calm
        return self._again(messages)

    def _event(self, user: str, ago_ms: int) -> str:
        at_ms = int(time.time() * 1000) - ago_ms
        return text(sign(fields("UserAudioStreamStart", at_ms, user_id=user), CALLBACK_KEY))

    def _post(self, body: str) -> str:
        event = {"version": "2.0", "rawPath": "/callbacks/rtc", "headers": {}, "requestContext": {}, "body": body}
        answer, raised, _ = self._invoke("callback", event)
        self.evidence.shown.append(answer)
        if raised or answer["statusCode"] != 200:
            self._refused.append(body)
            return raised or kind_of(json.loads(answer["body"]))
        return "taken"

    def _again(self, messages: list[dict[str, Any]]) -> tuple[set[str], float]:
        """Hand messages of the retry queue on, as Lambda does."""
        records = [
            {
                "messageId": message["MessageId"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "messageAttributes": {
                    name: {"stringValue": value["StringValue"]} for name, value in message["MessageAttributes"].items()
                },
            }
            for message in messages
        ]
        answer, raised, seconds = self._invoke("callback", {"Records": records})
        failed = {entry["itemIdentifier"] for entry in answer["batchItemFailures"]} if answer else None
        for message in messages:
            receipt = {"QueueUrl": self._retry_queue_url, "ReceiptHandle": message["ReceiptHandle"]}
            if failed is None or message["MessageId"] in failed:
                faulty, self.is_faulty = self.is_faulty, False
                self._clients["sqs"].change_message_visibility(**receipt, VisibilityTimeout=0)
                self.is_faulty = faulty
            else:
                self._clients["sqs"].delete_message(**receipt)
        return {raised or ("kept" if failed else "taken")}, seconds

    # After a fault

    def settle(self) -> None:
        """When all is well again: the vendor's next try, what was parked, and one sweep."""
        self.calm()
        self.simulator.rotate(KEYS)
        self.put_secret({"access_key_id": KEYS.access_key_id, "secret_access_key": KEYS.secret_access_key})
        self.put_secret({"callback_key": CALLBACK_KEY}, "CallbackKeySecretArn")
        # As if the minute had passed for which calls are held, and for which a sweep that died holds the lease.
        keys = [("limiter", "rtc"), ("sweep", "lease")]
        self._write([{"DeleteRequest": {"Key": {"pk": {"S": pk}, "sk": {"S": sk}}}} for pk, sk in keys])
        self.seconds = None
        refused, self._refused = self._refused, []
        self.evidence.lost += [f"event {kind}" for body in refused if (kind := self._post(body)) != "taken"]
        while messages := self._receive(self._retry_queue_url):
            if self._again(messages)[0] != {"taken"}:
                self.evidence.lost.append("a parked event")
                break
        self.use("post watches")
        if (kinds := self.use("sweep watched")) != {"answer"}:
            self.evidence.lost.append(f"the sweep after it: {sorted(kinds)}")
        self._take_messages()
        self.evidence.shown += [_state_of(item) for item in self._items() if "facts" in item]

    def compare(self, ways: Iterable[str]) -> None:
        """What the consumer of the queue has now must be the truth."""
        truth = {user: {name: name in on(AFTER[user]) for name in MEDIA.values()} for user in WATCHED}
        told = {way: user for way, user in {"push": "pupil", "push parked": "parked"}.items() if way in ways}
        truth |= {user: {**dict.fromkeys(MEDIA.values()), "audio": True} for user in told.values()}
        for user, media in truth.items():
            kept = self.consumer.kept.get((ROOM, user), {"media": None})
            if kept["media"] != media:
                self.evidence.lost.append(f"{user} is {kept['media']}")

    @property
    def log(self) -> str:
        """What was written to stdout and stderr since the fault began."""
        sys.stdout.flush()
        end = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), end - self._log_from, self._log_from).decode(errors="replace")

    def _take_messages(self) -> None:
        faulty, self.is_faulty = self.is_faulty, False
        self.problems = list[str]()
        for message in self._receive(self.outputs["ResultsQueueUrl"], delete=True):
            body = self.consumer.take(message["Body"])
            conforms("message", body)
            self.evidence.shown.append(body)
            if "problem" in body:
                self.problems.append(kind_of(body["problem"]))
        self.is_faulty = faulty

    def _receive(self, url: str, *, delete: bool = False) -> list[dict[str, Any]]:
        sqs, received = self._clients["sqs"], []
        every = {"MaxNumberOfMessages": 10, "AttributeNames": ["All"], "MessageAttributeNames": ["All"]}
        while batch := sqs.receive_message(QueueUrl=url, **every).get("Messages"):
            received += batch
            for message in batch if delete else ():
                sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
        return received

    def _items(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._clients["dynamodb"].scan(TableName=self.outputs["StateTableName"])["Items"]
        return items

    def _write(self, requests: list[Any]) -> None:
        if requests:
            self._clients["dynamodb"].batch_write_item(RequestItems={self.outputs["StateTableName"]: requests})


def kind_of(document: Mapping[str, Any]) -> str:
    """An answer, or the error's name, with the status where there are two; what breaks its schema is neither."""
    name = "problem" if "error" in document else "message" if "message_id" in document else "answer"
    if name == "problem" or document.get("type") == "stream_state":
        try:
            conforms(name, {key: value for key, value in document.items() if key != "message_id"})
        except Exception:  # noqa: BLE001 (whatever the validator raises)
            return "against the schema"
    if name != "problem":
        return "answer"
    status = document["status"]
    if status == STATUS.get(document["error"]):
        return str(document["error"])
    return f"{document['error']} {status}"


# The status of each error; where the time was up RtcUnavailable has 504, which is then part of its kind.
STATUS = {
    "InvalidTarget": 400,
    "TargetNotFound": 404,
    "QuotaExceeded": 429,
    "RtcThrottled": 429,
    "CredentialsInvalid": 500,
    "CredentialsUnavailable": 503,
    "StateUnavailable": 503,
    "DeliveryFailed": 503,
    "RtcAccessDenied": 502,
    "RtcRequestRefused": 502,
    "RtcActionRetired": 502,
    "RtcProtocolError": 502,
    "RtcUnavailable": 503,
}


def _state_of(item: Mapping[str, Any]) -> dict[str, Any]:
    """What an item of the table says, in the form of an answer."""
    facts = {name: fact[0] for name, fact in json.loads(item["facts"]["S"]).items()}
    media = {name: facts.get(name) for name in MEDIA.values()}
    return {"user_id": item["user_id"]["S"], "media": media, "present": None, "source": "table"}


def _hang_up(data: bytes) -> type[BaseRequestHandler]:
    """A handler that reads what comes first, answers with these bytes and closes."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(data)

    return Handler


class _Silent(BaseRequestHandler):
    """Waits until the client goes away."""

    def handle(self) -> None:
        while self.request.recv(4096):
            pass


def _listen(handler: type[BaseRequestHandler]) -> int:
    server = ThreadingTCPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])


def _ports() -> dict[str, int]:
    """Ports with nobody behind them, or somebody who never accepts, or who knows no TLS worth trusting."""
    closed = LoopbackServer(lambda request, connection: None)
    port = closed.server_address[1]
    closed.stop()
    secure = Simulator()
    with tempfile.TemporaryDirectory() as directory:
        context = make_certificate(Path(directory) / "localhost.pem")
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    kept = [full]
    for _ in range(4):
        waiting = socket.socket()
        waiting.setblocking(False)  # noqa: FBT003 (the socket's own name for it)
        waiting.connect_ex(full.getsockname())
        kept.append(waiting)
    _KEPT.append(kept)
    return {
        "closed": port,
        "full": full.getsockname()[1],
        "silent": _listen(_Silent),
        "hangs_up": _listen(_hang_up(b"")),
        "alert": _listen(_hang_up(b"\x15\x03\x03\x00\x02\x02\x28")),
        "self_signed": secure.server_address[1],
    }


_KEPT: list[Any] = []
STATE, WATCH = "/rooms/{room_id}/users/{user_id}/stream-state", "/rooms/{room_id}/users/{user_id}/watch"
# Each way in: the kinds of the answers, and the seconds in which they had to come.
WAYS: dict[str, Callable[[World], tuple[set[str], float]]] = {
    "ask": lambda world: world.http("GET", STATE),
    "ask known": lambda world: world.http("GET", STATE, query={"max_age": "3600"}),
    "query": lambda world: world.http("POST", "/stream-states/query", {"targets": TARGETS}),
    "list room": lambda world: world.http("GET", "/rooms/{room_id}/stream-states"),
    "put watch": lambda world: world.http("PUT", WATCH),
    "delete watch": lambda world: world.http("DELETE", WATCH),
    "post watches": lambda world: world.http("POST", "/watches", {"targets": TARGETS}),
    "list watches": lambda world: world.http("GET", "/watches"),
    "task": lambda world: world.task(),
    "sweep given": lambda world: world.sweep({"targets": TARGETS, "emit": "changes"}),
    "sweep watched": lambda world: world.sweep({}),
    "push": lambda world: world.push(),
    "push parked": lambda world: world.push_parked(),
}
