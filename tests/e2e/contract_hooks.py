"""The sandbox as schemathesis needs it: its AppId, its page tokens, its callback key."""

import base64
import hashlib
import json
from typing import Any

import schemathesis
from schemathesis import Case, HookContext, Response
from schemathesis.core.failures import Failure
from schemathesis.core.parameters import ParameterLocation
from schemathesis.generation.meta import TestPhase
from schemathesis.openapi.checks import MissingHeaderNotRejected, RejectedPositiveData, UnsupportedMethodResponse

from tests.sandbox.signatures import signed
from tests.sandbox.simulator import APP_ID

CALLBACK = "/callbacks/rtc"
# The users after whom a page begins, and their keys in each list.
USERS = ("listener-1", "listener-2")
KEYS = {
    "/rooms/{room_id}/stream-states": USERS,
    "/watches": tuple(f"{APP_ID}#class-1#{user}" for user in USERS),
}
PRESENT = {"room_id": "class-1", "user_id": "teacher"}


@schemathesis.hook
def before_load_schema(context: HookContext, raw_schema: dict[str, Any]) -> None:
    """Narrow the AppId to the stack's, and the tokens of each list to ones that the list gives."""
    components = raw_schema["components"]
    components["schemas"]["AppId"] = {"const": APP_ID}
    reference = {"$ref": "#/components/parameters/next_token"}
    for path, keys in KEYS.items():
        tokens = [base64.urlsafe_b64encode(key.encode()).decode() for key in keys]
        parameters = raw_schema["paths"][path]["get"]["parameters"]
        parameters[parameters.index(reference)] = components["parameters"]["next_token"] | {"schema": {"enum": tokens}}


@schemathesis.hook
def before_call(context: HookContext, case: Case[Any], kwargs: dict[str, Any]) -> None:
    """Send half of the well-formed ids as those of a user who is there, and sign three of four well-formed events."""
    if case.meta is None:
        return
    body: Any = case.body
    if isinstance(body, dict) and not case.meta.is_negative_at(ParameterLocation.BODY):
        if case.path == CALLBACK:
            case.body = event(body)
        elif share(body, 8):
            # Few are long: each target costs a call, of which the limit allows 50 a second.
            body |= {name: value[:3] for name, value in body.items() if name == "targets"}
    if case.meta.phase.name is not TestPhase.STATEFUL and not case.meta.is_negative_at(ParameterLocation.PATH):
        for name in case.path_parameters if share(case.path_parameters, 2) else ():
            case.path_parameters[name] = PRESENT[name]


def event(body: Any) -> Any:
    """The event as it is, or signed: a good one, one of another app, or one whose user is no text."""
    kind = share(body, 4)
    if kind == 0:
        return body
    fields = {name: body[name] for name in ("EventId", "Nonce", "Version")}
    fields |= {"AppId": body["AppId"] if kind == 1 else APP_ID, "EventType": "UserVideoStreamStart"}
    user = {"RoomId": PRESENT["room_id"], "UserId": 7 if kind == 2 else PRESENT["user_id"]}
    return json.loads(signed(fields | {"EventData": json.dumps(user)}))


def share(value: object, of: int) -> int:
    """A number below `of`, always the same for one value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[0] % of


@schemathesis.hook
def filter_failure(context: HookContext, failure: Failure, case: Case[Any], response: Response) -> bool:
    """Pass over API Gateway's answers in place of 401 and 405, and over rules that the document has in words only."""
    answered: Any = (response.status_code, response.json() if response.content else None)
    if isinstance(failure, UnsupportedMethodResponse):
        return bool(answered != (404, {"message": "Not Found"}))
    if isinstance(failure, MissingHeaderNotRejected):
        return bool(answered != (403, {"message": "Forbidden"}))
    # The text of EventData has rules too, and a path, unlike the body that a link comes from, cannot hold . as an id.
    words = ("UserId must be text", "cannot be . or .. in a path")
    return not (isinstance(failure, RejectedPositiveData) and any(text in answered[1]["detail"] for text in words))
