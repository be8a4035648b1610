"""Faults of AWS, pairs of faults, and little time, each with the kinds of answers that the taxonomy of errors asks for.

What is expected stands here a second time on purpose: the tables of the product are not asked.
"""

import json
import time
from collections.abc import Callable, Iterator

import boto3

from tests.integration.faults import (
    ALWAYS,
    ASKING,
    ECHO,
    FEW,
    NAMES,
    STEPS,
    Fault,
    always,
    everywhere,
    lookup,
    of,
    once,
    raw,
    reads,
    silence,
    told,
)
from tests.integration.world import KEYS, WAYS, Pass, World
from tests.sandbox import simulator
from tests.sandbox.aws import failure
from tests.sandbox.server import Response
from tests.sandbox.simulator import Exchange, canned, delay, error, reset

SU, DF = "StateUnavailable", "DeliveryFailed"
UNHARMED = {"ask": "answer", "query": "answer"}
STATE_LOST = (
    UNHARMED | dict.fromkeys(("task", "sweep given", "sweep watched"), SU) | {"push": "taken", "push parked": "kept"}
)
# What each step's failure comes to, for the ways in that take the step.
FAILS: dict[str, dict[str, str]] = {
    "read the keys": everywhere("CredentialsUnavailable", FEW),
    "read the callback key": {"push": "taken", "push parked": "kept"},
    "reserve a slot": dict.fromkeys((*ASKING, "sweep given"), "QuotaExceeded") | {"sweep watched": "remaining"},
    "read what is known": STATE_LOST,
    "write what is known": STATE_LOST,
    "read the end of the room": {"push": "taken", "push parked": "kept"},
    "write what was told": everywhere("answer") | {"push": "taken", "push parked": "taken"},
    "read several states": {"ask known": "answer"},
    "read a room": {"list room": SU},
    "write watches": {"put watch": SU, "post watches": SU},
    "delete a watch": {"delete watch": SU},
    "read the watches": {"list watches": SU, "sweep watched": SU},
    "take the lease": {"sweep watched": SU},
    "keep the lease": {"sweep watched": "answer"},
    "send": {"task": DF, "sweep given": DF, "sweep watched": f"{DF}|answer", "push": "taken", "push parked": "kept"},
}
WELL = {
    step: {way: "taken" if way.startswith("push") else "answer" for way in expected} for step, expected in FAILS.items()
}


def aws_error(code: str, status: int = 400) -> simulator.Fault:
    return canned(status, failure(code, status, ECHO)[1], {"Content-Type": "application/x-amz-json-1.1"})


def hang(seconds: float) -> simulator.Fault:
    """Do nothing for so long, and then close."""

    def fault(exchange: Exchange) -> None:
        time.sleep(seconds)

    return fault


def late(seconds: float) -> simulator.Fault:
    """Carry the call out after so long."""

    def fault(exchange: Exchange) -> None:
        time.sleep(seconds)
        raise Pass

    return fault


def unanswered(exchange: Exchange) -> None:
    """Carry the call out, and lose the answer."""
    raise Pass(answered=False)


def hang_seconds(step: str) -> float:
    """A little more than the client's time-out."""
    return {"send": 3.2, "park": 0.9, "read the keys": 2.2, "read the callback key": 2.2}.get(step, 1.15)


THROTTLES = {"DynamoDB": "ProvisionedThroughputExceededException"}
AT_EACH_STEP: dict[str, Callable[[str], simulator.Fault]] = {
    "throttled": lambda step: aws_error(THROTTLES.get(service(step), "ThrottlingException")),
    "internal error": lambda step: aws_error("InternalServerError", 500),
    "denied": lambda step: aws_error("AccessDeniedException"),
    "reset": lambda step: reset,
    "no answer": lambda step: hang(hang_seconds(step)),
}
AT_SOME_STEPS: dict[str, simulator.Fault] = {
    "gone": aws_error("ResourceNotFoundException"),
    "token expired": aws_error("ExpiredTokenException", 403),
    "token unknown": aws_error("UnrecognizedClientException"),
    "clock off": aws_error("InvalidSignatureException", 403),
    "unavailable": aws_error("ServiceUnavailable", 503),
    "unknown code": aws_error("NobodyKnowsThis"),
    "HTML with 502": canned(502, f"<html>{ECHO}", {"Content-Type": "text/html"}),
    "empty with 500": canned(500, b""),
    "no JSON with 400": canned(400, ECHO),
    "code that is no text": canned(400, {"__type": [ECHO], "message": {"a": ECHO}}),
    "a list with 400": canned(400, b"[]"),
    "cut in the status line": raw(b"HTTP/1.1 20"),
    "cut in the body": raw(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"It'),
    "HTML with 200": canned(200, f"<html>{ECHO}", {"Content-Type": "text/html"}),
    "empty with 200": canned(200, b""),
    "JSON cut off": canned(200, b'{"Item": {'),
    "redirect": canned(302, b"", {"Location": f"http://127.0.0.1:1/{ECHO}"}),
}
# An error of AWS with which it says that asking again is of no use, for the keys.
FINAL_FOR_KEYS = ("denied", "gone")
SOME_STEPS = ("read the keys", "write what is known", "send")
SHORT_OF_TIME = {"reserve a slot": 6.5}


def aws_faults() -> Iterator[Fault]:
    for step, expected in FAILS.items():
        kind = f"AWS: {service(step)}"
        seconds = SHORT_OF_TIME.get(step)
        for how, fault_for in AT_EACH_STEP.items():
            fails = expected
            if step == "read the keys" and how in FINAL_FOR_KEYS:
                fails = everywhere("CredentialsInvalid", FEW)
            name, fault, slow = f"{step}: {how}", fault_for(step), how == "no answer" or seconds is not None
            yield Fault(kind, name, fails, aws=always(step, fault), seconds=seconds, slow=slow, in_short=how == "reset")
        yield Fault(kind, f"{step}: reset, once", WELL[step], aws=once(step, reset))
        lost = once(step, unanswered)
        yield Fault(kind, f"{step}: done, but the answer is lost", WELL[step], aws=lost, in_short=True)
        if step != "read the keys":
            wait = late(hang_seconds(step))
            yield Fault(kind, f"{step}: done late", WELL[step], aws=once(step, wait), slow=True)
    for step in SOME_STEPS:
        for how, fault in AT_SOME_STEPS.items():
            fails = FAILS[step]
            if step == "read the keys" and how in FINAL_FOR_KEYS:
                fails = everywhere("CredentialsInvalid", FEW)
            kind, seconds = f"AWS: {service(step)}", SHORT_OF_TIME.get(step)
            yield Fault(kind, f"{step}: {how}", fails, aws=always(step, fault), seconds=seconds)
    yield from partial_faults()
    for name, host in {"DYNAMODB": "dynamodb.localhost", "SECRETS_MANAGER": "secrets.localhost"}.items():
        state = name == "DYNAMODB"
        expected = (
            {"list watches": SU, "put watch": SU, "ask": "QuotaExceeded"}
            if state
            else {"ask": "CredentialsUnavailable"}
        )
        for how, endpoint in {
            "refused": "http://127.0.0.1:{closed}",
            "never accepted": "http://127.0.0.1:{full}",
            "TLS fails": "https://127.0.0.1:{vendor}",
        }.items():
            address = {f"AWS_ENDPOINT_URL_{name}": endpoint}
            yield Fault(
                f"AWS: {'DynamoDB' if state else 'Secrets Manager'}", how, expected, environment=address, slow=True
            )
        address = {f"AWS_ENDPOINT_URL_{name}": f"http://{host}:{{aws}}"}
        gone = lookup(NAMES["name unknown"], host)
        yield Fault(
            f"AWS: {'DynamoDB' if state else 'Secrets Manager'}",
            "name unknown",
            expected,
            environment=address,
            prepare=gone,
        )


def service(step: str) -> str:
    return "SQS" if step in {"send", "park"} else "Secrets Manager" if "key" in step else "DynamoDB"


def refuse_one(user: str, *, sender: bool) -> simulator.Fault:
    """SQS takes all entries of a batch but those of a user."""

    def fault(exchange: Exchange) -> Response | None:
        call = json.loads(exchange.request.body)
        failed = [entry for entry in call["Entries"] if user in entry["MessageBody"]]
        if not failed:
            raise Pass
        taken = [entry for entry in call["Entries"] if entry not in failed]
        sent = boto3.client("sqs").send_message_batch(QueueUrl=call["QueueUrl"], Entries=taken) if taken else {}
        answer = [
            {"Id": entry["Id"], "Code": "InternalError", "Message": ECHO, "SenderFault": sender} for entry in failed
        ]
        return canned(200, {"Successful": sent.get("Successful", []), "Failed": answer})(exchange)

    return fault


def undone(exchange: Exchange) -> Response | None:
    """Leave all of a batch of DynamoDB undone."""
    call = json.loads(exchange.request.body)["RequestItems"]
    name = "UnprocessedKeys" if "Keys" in next(iter(call.values())) else "UnprocessedItems"
    return canned(200, {"Responses": {}, name: call})(exchange)


def partial_faults() -> Iterator[Fault]:
    kind = "AWS: partly"
    for step, failing, well in (
        ("read several states", {"ask known": "answer"}, {"ask known": "answer"}),
        ("write watches", {"post watches": SU, "put watch": SU}, {"post watches": "answer"}),
    ):
        yield Fault(kind, f"{step}: all left undone once", well, aws=once(step, undone))
        yield Fault(kind, f"{step}: all left undone", failing, aws=always(step, undone), slow=True)
    for sender in (True, False):
        blame = "ours" if sender else "theirs"
        refused = refuse_one("", sender=sender)
        yield Fault(kind, f"send: each refused, the fault {blame}", FAILS["send"], aws=always("send", refused))
        expected = {"task": "answer"} if not sender else {"task": DF}
        yield Fault(
            kind,
            f"send: one refused once, the fault {blame}",
            expected,
            aws=once("send", refuse_one("guest", sender=sender)),
        )
    nothing = canned(200, {"Successful": [], "Failed": []})
    yield Fault(kind, "send: nothing said of any entry", FAILS["send"], aws=always("send", nothing))
    yield Fault(kind, "send: nothing said, once", WELL["send"], aws=once("send", nothing))
    for user in ("teacher", "guest", "host", "late"):
        STEPS[f"write what is known of {user}"] = of("PutItem", f'"{user}"')
        STEPS[f"read what is known of {user}"] = reads(f"'{user}'")
        for step in (f"write what is known of {user}", f"read what is known of {user}"):
            fails = dict.fromkeys(("sweep given", "sweep watched"), f"{SU}|answer") | UNHARMED
            yield Fault(kind, step, fails, aws=always(step, aws_error("InternalServerError", 500)))


SECRETS: dict[str, str] = {
    "empty": "",
    "no JSON": ECHO,
    "cut off": json.dumps({"access_key_id": KEYS.access_key_id})[:-1],
    "no object": json.dumps([KEYS.access_key_id]),
    "no secret key": json.dumps({"access_key_id": KEYS.access_key_id}),
    "both spellings": json.dumps({"access_key_id": KEYS.access_key_id, "AccessKeyId": "a", "secret_access_key": "b"}),
    "a name twice": f'{{"access_key_id": "{KEYS.access_key_id}", "access_key_id": "a", "secret_access_key": "b"}}',
    "a key that is no text": json.dumps({"access_key_id": 7, "secret_access_key": "b"}),
    "white space": json.dumps({"access_key_id": f"{KEYS.access_key_id}\n", "secret_access_key": "b"}),
}


def warm(world: World) -> None:
    """Let the functions have their keys from before."""
    for way in ("ask", "task"):
        assert world.use(way) == {"answer"}


def secret_faults() -> Iterator[Fault]:
    kind = "AWS: Secrets Manager"
    for name, value in SECRETS.items():
        # Secrets Manager itself accepts no empty text.
        if value:
            store = lambda world, value=value: world.put_secret(value)  # noqa: E731 (short)
            yield Fault(kind, f"the secret: {name}", everywhere("CredentialsInvalid", FEW), prepare=store)
    ways = everywhere("answer", ("ask", "task"))
    for how, fault in ((how, make("read the keys")) for how, make in AT_EACH_STEP.items()):
        yield Fault(
            kind,
            f"read the keys again: {how}",
            ways,
            aws=always("read the keys", fault),
            environment={"SECRET_MAX_AGE": "0"},
            prepare=warm,
            slow=how == "no answer",
        )
    rejected = everywhere("CredentialsUnavailable|RtcAccessDenied", ("ask", "task"))
    for how in ("throttled", "reset", "internal error"):
        fault = AT_EACH_STEP[how]("read the keys")
        yield Fault(
            "pair: vendor and Secrets Manager",
            f"keys rejected, read again: {how}",
            rejected,
            error("InvalidAccessKey", 401, 100009, ECHO),
            aws=always("read the keys", fault),
            prepare=warm,
        )


# Pairs

PAIRED_VENDOR: dict[str, tuple[simulator.Fault, str]] = {
    "reset": (reset, "RtcUnavailable"),
    "too slow": (silence, "RtcUnavailable 504"),
    "500": (canned(500, b""), "RtcUnavailable"),
    "HTML": (canned(200, f"<html>{ECHO}"), "RtcProtocolError"),
    "not found": (error("InternalError.UserNotFound", 404, 0, ECHO), "TargetNotFound"),
    "denied": (error("AccessDenied", 403, 100013, ECHO), "RtcAccessDenied"),
    "nothing told": (told(), "answer"),
}
PAIRED_AWS = {
    "known not read, throttled": ("read what is known", "throttled"),
    "known not written, reset": ("write what is known", "reset"),
    "told not written, denied": ("write what was told", "denied"),
    "not sent, internal error": ("send", "internal error"),
    "keys not read, throttled": ("read the keys", "throttled"),
    "no slot reserved, reset": ("reserve a slot", "reset"),
    "lease not taken, throttled": ("take the lease", "throttled"),
    "cursor not stored, reset": ("keep the lease", "reset"),
}


def pair_faults() -> Iterator[Fault]:
    for vendor_name, (fault, kind) in PAIRED_VENDOR.items():
        for aws_name, (step, how) in PAIRED_AWS.items():
            fails = FAILS[step]
            if step in {"read the keys", "reserve a slot"}:
                expected = {"ask": fails["ask"]}
            elif kind == "answer":
                expected = {way: fails.get(way, "answer") for way in ("task", "sweep watched")}
            else:
                expected = everywhere(kind, ("task", "sweep watched"))
                if kind == "TargetNotFound":
                    expected["sweep watched"] = fails.get("sweep watched", "answer")
                elif step == "take the lease":
                    expected["sweep watched"] = SU
                expected["sweep watched"] += "|answer" if step == "send" and kind == "TargetNotFound" else ""
            yield Fault(
                "pair: vendor and AWS",
                f"{vendor_name}; {aws_name}",
                expected,
                fault,
                aws=always(step, AT_EACH_STEP[how](step)),
                seconds=SHORT_OF_TIME.get(step),
                absent=kind == "TargetNotFound",
                slow=vendor_name == "too slow",
            )
    kind = "pair: AWS and AWS"
    parking = AT_EACH_STEP["reset"]("park")
    for step in ("read what is known", "write what is known", "send", "read the callback key"):
        for how in ("throttled", "reset", "no answer"):
            failing = ((step, AT_EACH_STEP[how](step), ALWAYS), ("park", parking, ALWAYS))
            yield Fault(kind, f"{step}: {how}; not parked", {"push": DF}, aws=failing)
    failing = (("write what was told", reset, ALWAYS), ("send", reset, 1))
    yield Fault(kind, "sent at the second try; told not written", WELL["send"], aws=failing)
    failing = (
        ("any call of DynamoDB", aws_error("InternalServerError", 500), ALWAYS),
        ("any call of SQS", reset, ALWAYS),
    )
    expected = {"ask": "QuotaExceeded", "task": "QuotaExceeded", "sweep watched": SU, "push": DF, "list watches": SU}
    yield Fault(kind, "DynamoDB and SQS are gone", expected, aws=failing)
    kind = "pair: vendor and limit"
    throttle = error("FlowLimitExceeded", 429, 100018, ECHO)
    for how in ("throttled", "reset", "denied"):
        fault = AT_EACH_STEP[how]("hold all calls")
        yield Fault(
            kind,
            f"throttled; hold not written, {how}",
            everywhere("RtcThrottled", ("ask", "task")),
            throttle,
            aws=always("hold all calls", fault),
            slow=True,
        )
    retired, denied = error("InvalidActionOrVersion", 404, 100008, ECHO), error("LackPolicy", 403, 100012, ECHO)
    failing = always("read several states", reset)
    yield Fault(kind, "retired; states not read", everywhere(SU, ASKING), retired, aws=failing)
    failing = always("count the watches", reset)
    expected = {"sweep watched": f"{SU}|RtcAccessDenied|remaining"}
    yield Fault(kind, "denied; watches not counted", expected, denied, aws=failing)
    off = {"RTC_QUERY": "off"}
    yield Fault(
        kind,
        "no query; states not read",
        everywhere(SU, ASKING),
        environment=off,
        aws=always("read several states", reset),
    )
    local = {"QUOTA_FAILURE_MODE": "open"}
    failing = always("reserve a slot", reset)
    yield Fault(
        kind, "the limit is gone, and open", everywhere("answer", ("ask", "task")), environment=local, aws=failing
    )


# Time

LAST = "QuotaExceeded|RtcUnavailable 504|answer"


def time_faults() -> Iterator[Fault]:
    kind = "time almost gone"
    for seconds in (1.5, 3, 3.9, 4.1, 4.5):
        expected = {"ask": LAST, "query": LAST, "sweep watched": f"{LAST}|remaining", "sweep given": LAST}
        yield Fault(kind, f"{seconds} s left", expected, seconds=seconds)
    for seconds in (3, 11.9, 12.2):
        yield Fault(kind, f"{seconds} s left to deliver", {"task": f"{LAST}|DeliveryFailed"}, seconds=seconds)
    yield Fault(
        kind,
        "5 s left, the vendor silent",
        {"ask": LAST, "query": LAST},
        silence,
        seconds=5,
        slow=True,
        environment={"RTC_READ_TIMEOUT": "3"},
    )
    for step in ("read what is known", "write what is known", "any state", "reserve a slot"):
        for how, fault in {"silent": hang(1.15), "slow": late(0.9)}.items():
            states = always(step, fault)
            name = f"4.8 s left, the vendor slow; {step}: {how}"
            yield Fault(
                kind,
                name,
                {"ask": LAST, "query": LAST},
                delay(0.4),
                aws=states,
                seconds=4.8,
                slow=True,
                environment={"RTC_READ_TIMEOUT": "3"},
            )
    flaky = tuple((step, hang(1.15), 2) for step in ("read what is known", "write what is known"))
    yield Fault(
        kind,
        "4.5 s left; each call of the table fails twice",
        {"ask": LAST},
        delay(0.3),
        aws=flaky,
        seconds=4.5,
        slow=True,
    )
    rejected = error("InvalidAccessKey", 401, 100009, ECHO)
    late_refusal = lambda exchange: (time.sleep(1.5), rejected(exchange))[1]  # noqa: E731 (short)
    yield Fault(
        kind,
        "6 s left, the keys rejected late; not read again",
        {"ask": "CredentialsUnavailable|RtcAccessDenied"},
        late_refusal,
        aws=always("read the keys", hang(2.2)),
        seconds=6,
        slow=True,
        prepare=warm,
        environment={"RTC_READ_TIMEOUT": "3"},
    )
    yield Fault(
        kind,
        "the vendor waits 5 s; nothing of AWS answers",
        {"push": "DeliveryFailed|taken"},
        slow=True,
        aws=(("any call of DynamoDB", hang(1.15), ALWAYS), ("any call of SQS", hang(1.15), ALWAYS)),
    )
    yield Fault(
        kind,
        "the vendor waits 5 s; all of DynamoDB is slow",
        {"push": "taken"},
        slow=True,
        aws=always("any call of DynamoDB", late(0.55)),
    )


def no_fault() -> Iterator[Fault]:
    yield Fault("none", "nothing fails", {way: "taken" if "push" in way else "answer" for way in WAYS})


AWS_FAULTS = [fault for group in (aws_faults, secret_faults, pair_faults, time_faults, no_fault) for fault in group()]
