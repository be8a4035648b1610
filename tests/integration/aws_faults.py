"""Faults of AWS, pairs of faults, and little time, each with the kinds of answers that the taxonomy of errors asks for.

The expectations stand here a second time on purpose: the product's tables are not asked.
"""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3

from tests.integration.faults import (
    ALWAYS,
    ASKING,
    ECHO,
    EVERY,
    FEW,
    LONG,
    NAMES,
    RECHECKED,
    STEPS,
    AtStep,
    Fault,
    always,
    everywhere,
    lookup,
    of,
    once,
    raw,
    silence,
    stated,
)
from tests.integration.world import BY_EVENTS, KEYS, WAYS, FaultyWorld, Pass
from tests.sandbox import simulator
from tests.sandbox.aws import failure
from tests.sandbox.server import Response
from tests.sandbox.simulator import Exchange
from tests.vendor.faults import canned, delay, drip, error, reset

SU, DF, CU = "StateUnavailable", "DeliveryFailed", "CredentialsUnavailable"
SWEEPS = ("sweep given", "sweep watched")
# An event that was verified is kept; a message of the retry queue stays there.
KEPT = {"event": "received", "kept event": "item failure"}


def well(*ways: str) -> dict[str, str]:
    """The kinds of the answers to these ways in if nothing fails."""
    return {way: "received" if way in {*BY_EVENTS, "recheck"} else "answer" for way in ways}


# The kinds of the answers while a step fails, for the ways in that take the step.
FAILS: dict[str, dict[str, str]] = {
    "read the keys": everywhere(CU, (*FEW, "recheck")),
    "read the callback key": {"event": CU, "kept event": "item failure"},
    "reserve a slot": dict.fromkeys((*ASKING, "sweep given"), "QuotaExceeded")
    | {"sweep watched": "remaining", "recheck": RECHECKED},
    "read records to merge": well(*SWEEPS) | {"recheck": "item failure"},
    "write the record": well("ask", "query") | dict.fromkeys(("task", *SWEEPS), SU) | KEPT | {"recheck": RECHECKED},
    "read the end of the room": KEPT,
    "mark the delivery": well(*ASKING, *SWEEPS, "event", "kept event", "recheck"),
    "list undelivered changes": well("ask", *SWEEPS, "event", "kept event", "recheck"),
    "read several records": well("ask by age"),
    "read a room": {"list room": SU},
    "write watches": {"put watch": SU, "post watches": SU},
    "delete a watch": {"delete watch": SU},
    "read the watches": {"list watches": SU, "sweep watched": SU},
    "take the lease": {"sweep watched": SU},
    "keep the lease": well("sweep watched"),
    "send": {"task": DF, "sweep given": DF, "sweep watched": f"{DF}|answer", "recheck": "item failure"} | KEPT,
    "ask for a recheck": well("leave"),
    "register a wait": {"round": SU},
    "mark the record of a wait": {"round": SU},
    "take the mark away": well(*EVERY),
    "find the waits": well(*EVERY),
    "remove a wait": well(*EVERY),
    "answer a wait": well(*EVERY),
}


def aws_error(code: str, status: int = 400) -> simulator.Fault:
    return canned(status, failure(code, status, ECHO)[1], {"Content-Type": "application/x-amz-json-1.1"})


def hang(seconds: float, then: Pass | None = None) -> simulator.Fault:
    """Do nothing for so long, and then close, or let the call pass."""

    def fault(exchange: Exchange) -> None:
        time.sleep(seconds)
        if then:
            raise then

    return fault


def late(seconds: float) -> simulator.Fault:
    """Carry the call out after so long."""
    return hang(seconds, Pass())


unanswered = hang(0, Pass(answered=False))


def service(step: str) -> str:
    is_queue = step in {"send", "keep the event", "ask for a recheck"}
    if step == "answer a wait":
        return "Step Functions"
    return "SQS" if is_queue else "Secrets Manager" if "key" in step else "DynamoDB"


def hang_seconds(step: str) -> float:
    """A little more than the client's time-out."""
    return {"answer a wait": 0.6, "send": 3.2, "read the keys": 2.2, "read the callback key": 2.2}.get(step, 1.15)


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
SOME_STEPS = ("read the keys", "write the record", "send", "answer a wait")
SHORT_OF_TIME = {"reserve a slot": 6.5}


def fails(step: str, how: str) -> dict[str, str]:
    """The kinds of the answers while a step fails so."""
    if (step, how) == ("reserve a slot", "no answer"):
        # A sweep keeps a tenth of its time, here less than the time-outs of one slot.
        return dict.fromkeys(ASKING, "QuotaExceeded")
    if step == "read the keys" and how in {"denied", "gone"}:
        return everywhere("CredentialsInvalid", FEW)
    return FAILS[step]


def step_faults() -> Iterator[Fault]:
    for step, expected in FAILS.items():
        kind, seconds, unharmed = f"AWS: {service(step)}", SHORT_OF_TIME.get(step), well(*expected)
        for how, fault_for in AT_EACH_STEP.items():
            name, at = f"{step}: {how}", always(step, fault_for(step))
            slow = how == "no answer" or seconds is not None
            yield Fault(kind, name, fails(step, how), aws=at, seconds=seconds, slow=slow, in_short=how == "reset")
        yield Fault(kind, f"{step}: reset, once", unharmed, aws=once(step, reset))
        lost = once(step, unanswered)
        yield Fault(kind, f"{step}: done, but the answer is lost", unharmed, aws=lost, in_short=True)
        # The callback function waits for a key for less than two time-outs.
        if "key" not in step:
            wait = late(hang_seconds(step))
            yield Fault(kind, f"{step}: done late", unharmed, aws=once(step, wait), slow=True)
    for step in SOME_STEPS:
        for how, fault in AT_SOME_STEPS.items():
            yield Fault(f"AWS: {service(step)}", f"{step}: {how}", fails(step, how), aws=always(step, fault))


ENDPOINTS = {
    "refused": "http://127.0.0.1:{closed}",
    "never accepted": "http://127.0.0.1:{full}",
    "TLS fails": "https://127.0.0.1:{vendor}",
}


def endpoint_faults() -> Iterator[Fault]:
    without_table = {"list watches": SU, "put watch": SU, "ask": "QuotaExceeded"}
    for to, host, expected in (
        ("DynamoDB", "dynamodb.localhost", without_table),
        ("Secrets Manager", "secrets.localhost", {"ask": CU, "event": CU}),
    ):
        kind, name = f"AWS: {to}", f"AWS_ENDPOINT_URL_{to.upper().replace(' ', '_')}"
        for how, endpoint in ENDPOINTS.items():
            yield Fault(kind, how, expected, environment={name: endpoint}, slow=True)
        own, gone = {name: f"http://{host}:{{aws}}"}, lookup(NAMES["name unknown"], host)
        yield Fault(kind, "name unknown", expected, environment=own, prepare=gone)
        # Nothing bounds the look-up of a name and an answer that drips, but the callback function's own time.
        hangs, kept = lookup(LONG, host), {"event": "received" if to == "DynamoDB" else CU}
        yield Fault(kind, "name service hangs", kept, environment=own, prepare=hangs, slow=True)
        dripping = always(f"any call of {to}", drip(0.05))
        yield Fault(kind, "each answer byte by byte", kept, aws=dripping, slow=True)


def refuse_one(user: str, *, sender: bool) -> simulator.Fault:
    """SQS accepts all entries of a batch but those of a user."""

    def fault(exchange: Exchange) -> Response | None:
        call = json.loads(exchange.request.body)
        failed = [entry for entry in call["Entries"] if user in entry["MessageBody"]]
        if not failed:
            raise Pass
        others = [entry for entry in call["Entries"] if entry not in failed]
        sqs, refusal = boto3.client("sqs"), {"Code": "InternalError", "Message": ECHO, "SenderFault": sender}
        sent: Any = sqs.send_message_batch(QueueUrl=call["QueueUrl"], Entries=others) if others else {"Successful": []}
        refused = [{"Id": entry["Id"], **refusal} for entry in failed]
        return canned(200, {"Successful": sent["Successful"], "Failed": refused})(exchange)

    return fault


def undone(exchange: Exchange) -> Response | None:
    """Leave all of a batch of DynamoDB undone."""
    call = json.loads(exchange.request.body)["RequestItems"]
    name = "UnprocessedKeys" if "Keys" in next(iter(call.values())) else "UnprocessedItems"
    return canned(200, {"Responses": {}, name: call})(exchange)


def partial_faults() -> Iterator[Fault]:
    kind = "AWS: partly"
    for step in ("read several records", "write watches"):
        unharmed = well(*FAILS[step])
        yield Fault(kind, f"{step}: all left undone once", unharmed, aws=once(step, undone))
        yield Fault(kind, f"{step}: all left undone", FAILS[step], aws=always(step, undone), slow=True)
    for blame, sender in {"ours": True, "theirs": False}.items():
        name, each = f"send: each refused, the fault {blame}", always("send", refuse_one("", sender=sender))
        yield Fault(kind, name, FAILS["send"], aws=each)
        name, one = f"send: one refused once, the fault {blame}", once("send", refuse_one("guest", sender=sender))
        yield Fault(kind, name, {"task": DF if sender else "answer"}, aws=one)
    nothing = canned(200, {"Successful": [], "Failed": []})
    yield Fault(kind, "send: nothing said of any entry", FAILS["send"], aws=always("send", nothing))
    yield Fault(kind, "send: nothing said, once", well(*FAILS["send"]), aws=once("send", nothing))
    for user in ("teacher", "guest", "host", "late"):
        step = f"write the record of {user}"
        STEPS[step] = of("PutItem", f'"{user}"')
        expected = dict.fromkeys(SWEEPS, f"{SU}|answer") | well("ask", "query")
        yield Fault(kind, step, expected, aws=always(step, AT_EACH_STEP["internal error"](step)))


SECRETS: dict[str, str] = {
    "no JSON": ECHO,
    "cut off": json.dumps({"access_key_id": KEYS.access_key_id})[:-1],
    "no object": json.dumps([KEYS.access_key_id]),
    "no secret key": json.dumps({"access_key_id": KEYS.access_key_id}),
    "both spellings": json.dumps({"access_key_id": KEYS.access_key_id, "AccessKeyId": "a", "secret_access_key": "b"}),
    "a name twice": f'{{"access_key_id": "{KEYS.access_key_id}", "access_key_id": "a", "secret_access_key": "b"}}',
    "a key that is no text": json.dumps({"access_key_id": 7, "secret_access_key": "b"}),
    "white space": json.dumps({"access_key_id": f"{KEYS.access_key_id}\n", "secret_access_key": "b"}),
}
NO_CALLBACK_KEYS = {"no JSON": ECHO, "no key": "{}", "white space": json.dumps({"callback_key": f"{KEYS} "})}


def warmed(*ways: str, then: Callable[[FaultyWorld], None] = lambda world: None) -> Callable[[FaultyWorld], None]:
    """The functions have connections and secrets from before."""

    def prepare(world: FaultyWorld) -> None:
        for way in ways:
            assert world.use(way) == set(well(way).values())
        then(world)

    return prepare


def secret_faults() -> Iterator[Fault]:
    kind, step = "AWS: Secrets Manager", "read the keys"
    for name, value in SECRETS.items():
        store = lambda world, value=value: world.put_secret(value)  # noqa: E731 (short)
        yield Fault(kind, f"the secret: {name}", everywhere("CredentialsInvalid", FEW), prepare=store)
    for name, value in NO_CALLBACK_KEYS.items():
        store = lambda world, value=value: world.put_secret(value, "CallbackKeySecretArn")  # noqa: E731 (short)
        unverified = FAILS["read the callback key"]
        yield Fault(kind, f"the callback key's secret: {name}", unverified, prepare=store, in_short=True)
    ways, warm = everywhere("answer", ("ask", "task")), warmed("ask", "task")
    rejected = everywhere(f"{CU}|RtcAccessDenied", ("ask", "task"))
    fresh = {"SECRET_MAX_AGE": "0"}
    for how, fault_for in AT_EACH_STEP.items():
        name, at, slow = f"{step} again: {how}", always(step, fault_for(step)), how == "no answer"
        yield Fault(kind, name, ways, aws=at, environment=fresh, prepare=warm, slow=slow)
        if how in {"throttled", "reset", "internal error"}:
            pair, refusal = "pair: vendor and Secrets Manager", error("InvalidAccessKey", 401, 100009, ECHO)
            yield Fault(pair, f"keys rejected, read again: {how}", rejected, refusal, aws=at, prepare=warm)


# Connections that were kept, and are dead when the function goes on after a pause

# The ways in that connect to a service, and those that use the kept connections then.
ON_KEPT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "DynamoDB": (("ask", "task", "sweep watched", "event"), ("ask", "task", "sweep watched", "kept event")),
    "SQS": (("task", "leave"), ("task", "event")),
    "Secrets Manager": (("ask", "task", "event"), ("ask", "task", "kept event")),
}
DYING: dict[str, simulator.Fault] = {"closed": hang(0), "reset": reset, "silent": silence}


def kept_faults() -> Iterator[Fault]:
    kind, failing = "AWS: kept connections", always("write the record", aws_error("InternalServerError", 500))
    for to, (before, ways) in ON_KEPT.items():
        # Each invocation reads the secrets.
        fresh = {"SECRET_MAX_AGE": "0"} if to == "Secrets Manager" else {}
        for how, fault in DYING.items():
            name, at, warm = f"{to}: {how}", always(f"a kept connection to {to}", fault), warmed(*before)
            yield Fault(kind, name, well(*ways), aws=at, prepare=warm, environment=fresh, in_short=True)
        close = warmed(*before, then=FaultyWorld.close_kept)
        yield Fault(kind, f"{to}: closed while idle", well(*ways), prepare=close, environment=fresh, in_short=True)
    for how, fault in DYING.items():
        at = failing + always("a kept connection to SQS", fault)
        yield Fault(kind, f"the event is kept: {how}", well("event"), aws=at, prepare=warmed("leave"), in_short=True)


# Pairs

PAIRED_VENDOR: dict[str, tuple[simulator.Fault, str]] = {
    "reset": (reset, "RtcUnavailable"),
    "too slow": (silence, "RtcUnavailable 504"),
    "500": (canned(500, b""), "RtcUnavailable"),
    "HTML": (canned(200, f"<html>{ECHO}"), "RtcProtocolError"),
    "not found": (error("InternalError.UserNotFound", 404, 0, ECHO), "TargetNotFound"),
    "denied": (error("AccessDenied", 403, 100013, ECHO), "RtcAccessDenied"),
    "nothing stated": (stated(), "answer"),
}
PAIRED_AWS = {
    "records not read, throttled": ("read records to merge", "throttled"),
    "record not written, reset": ("write the record", "reset"),
    "delivery not marked, denied": ("mark the delivery", "denied"),
    "not sent, internal error": ("send", "internal error"),
    "keys not read, throttled": ("read the keys", "throttled"),
    "no slot reserved, reset": ("reserve a slot", "reset"),
    "lease not taken, throttled": ("take the lease", "throttled"),
    "cursor not stored, reset": ("keep the lease", "reset"),
}


def vendor_pairs() -> Iterator[Fault]:
    kind = "pair: vendor and AWS"
    for vendor_name, (fault, of_vendor) in PAIRED_VENDOR.items():
        for aws_name, (step, how) in PAIRED_AWS.items():
            failing, expected = FAILS[step], everywhere(of_vendor, ("task", "sweep watched"))
            if step in {"read the keys", "reserve a slot"}:
                expected = {"ask": failing["ask"]}
            elif of_vendor in {"answer", "TargetNotFound"} or step == "take the lease":
                expected["sweep watched"] = failing.get("sweep watched", "answer")
            if of_vendor == "answer" and "task" in expected:
                expected["task"] = failing.get("task", "answer")
            at, seconds = always(step, AT_EACH_STEP[how](step)), SHORT_OF_TIME.get(step)
            absent, slow = of_vendor == "TargetNotFound", vendor_name == "too slow"
            name = f"{vendor_name}; {aws_name}"
            yield Fault(kind, name, expected, fault, aws=at, seconds=seconds, absent=absent, slow=slow)


def pair_faults() -> Iterator[Fault]:
    at: tuple[AtStep, ...]
    kind, not_kept = "pair: AWS and AWS", ("keep the event", reset, ALWAYS)
    for step in ("write the record", "send", "read the end of the room"):
        for how in ("throttled", "reset", "no answer"):
            at = ((step, AT_EACH_STEP[how](step), ALWAYS), not_kept)
            yield Fault(kind, f"{step}: {how}; not kept", {"event": DF}, aws=at)
    at = (("mark the delivery", reset, ALWAYS), ("send", reset, 1))
    yield Fault(kind, "sent at the second try; delivery not marked", well(*FAILS["send"]), aws=at)
    at = (("any call of DynamoDB", aws_error("InternalServerError", 500), ALWAYS), ("any call of SQS", reset, ALWAYS))
    gone = {"ask": "QuotaExceeded", "task": "QuotaExceeded", "sweep watched": SU, "event": DF, "list watches": SU}
    yield Fault(kind, "DynamoDB and SQS are gone", gone, aws=at)
    at = (("list undelivered changes", reset, ALWAYS), ("send", reset, 1), ("ask for a recheck", reset, ALWAYS))
    unharmed = well("ask", "task", "sweep watched", "leave")
    yield Fault(kind, "no list, no recheck", unharmed, aws=at, in_short=True)
    kind, throttle = "pair: vendor and limit", error("FlowLimitExceeded", 429, 100018, ECHO)
    throttled = everywhere("RtcThrottled", ("ask", "task"))
    for how in ("throttled", "reset", "denied"):
        at = always("hold all calls", AT_EACH_STEP[how]("hold all calls"))
        yield Fault(kind, f"throttled; hold not written, {how}", throttled, throttle, aws=at, slow=True)
    retired, denied = error("InvalidActionOrVersion", 404, 100008, ECHO), error("LackPolicy", 403, 100012, ECHO)
    unread, uncounted = always("read several records", reset), always("count the watches", reset)
    yield Fault(kind, "retired; records not read", everywhere(SU, ASKING), retired, aws=unread)
    off = {"RTC_QUERY": "off"}
    yield Fault(kind, "no query; records not read", everywhere(SU, ASKING), aws=unread, environment=off)
    expected = {"sweep watched": f"{SU}|RtcAccessDenied|remaining"}
    yield Fault(kind, "denied; watches not counted", expected, denied, aws=uncounted)


# Time


def late_refusal(exchange: Exchange) -> Response | None:
    time.sleep(1.5)
    return error("InvalidAccessKey", 401, 100009, ECHO)(exchange)


LAST = "QuotaExceeded|RtcUnavailable 504|answer"


def time_faults() -> Iterator[Fault]:
    kind, patient = "time almost gone", {"RTC_READ_TIMEOUT": "3"}
    asked = dict.fromkeys(("ask", "query"), LAST)
    for seconds in (1.5, 3, 3.9, 4.1, 4.5):
        expected = asked | {"sweep watched": f"{LAST}|remaining", "sweep given": LAST}
        yield Fault(kind, f"{seconds} s left", expected, seconds=seconds)
    for seconds in (3, 11.9, 12.2):
        yield Fault(kind, f"{seconds} s left to deliver", {"task": f"{LAST}|{DF}"}, seconds=seconds)
    name = "5 s left, the vendor silent"
    yield Fault(kind, name, asked, silence, seconds=5, slow=True, environment=patient)
    for step in ("write the record", "any call of DynamoDB", "reserve a slot"):
        for how, fault in {"silent": hang(1.15), "slow": late(0.9)}.items():
            name, at = f"4.8 s left, the vendor slow; {step}: {how}", always(step, fault)
            yield Fault(kind, name, asked, delay(0.4), aws=at, seconds=4.8, slow=True, environment=patient)
    flaky = (("reserve a slot", hang(1.15), 1), ("write the record", hang(1.15), 2))
    name = "4.5 s left; each call of the table fails"
    yield Fault(kind, name, {"ask": LAST}, delay(0.3), aws=flaky, seconds=4.5, slow=True)
    rejected, unread = {"ask": f"{CU}|RtcAccessDenied"}, always("read the keys", hang(2.2))
    warm, name = warmed("ask", "task"), "6 s left, the keys rejected late; not read again"
    yield Fault(kind, name, rejected, late_refusal, aws=unread, seconds=6, slow=True, prepare=warm, environment=patient)
    silent = always("any call of DynamoDB", hang(1.15)) + always("any call of SQS", hang(1.15))
    yield Fault(kind, "the vendor waits 5 s; nothing of AWS answers", {"event": f"{DF}|{CU}"}, aws=silent, slow=True)
    slow = always("any call of DynamoDB", late(0.45))
    yield Fault(kind, "the vendor waits 5 s; all of DynamoDB is slow", well("event"), aws=slow, slow=True)


GROUPS = (step_faults, endpoint_faults, partial_faults, secret_faults, kept_faults, vendor_pairs, pair_faults)
AWS_FAULTS = [fault for group in (*GROUPS, time_faults) for fault in group()]
# Without a fault every way in must do its work.
AWS_FAULTS.append(Fault("none", "nothing fails", well(*WAYS), in_short=True))
