"""API Gateway: states, and the watches of the sweep, over HTTP."""

import os
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from stream_state.gateway import Request, Response, json_response, page_key, page_response, respond, whole_number
from stream_state.lookup import Lookup, deadline, item
from stream_state.model import parse_targets
from stream_state.observability import entry_point, logger
from stream_state.settings import Settings
from stream_state.table import StateTable
from stream_state.validation import parse_max_age
from stream_state.watch_list import WatchList, parse_expires_in

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

MAX_TARGETS = 100
# Kept of the time, to write what the last calls told, and to answer.
ANSWER_SECONDS = 4

settings = Settings.from_environment(os.environ)
table = StateTable.from_settings(settings)
watch_list = WatchList(table)
lookup = Lookup.from_settings(settings, table, "api")


def get_stream_state(request: Request) -> Response:
    """Tell the state of one user."""
    options = request.query({"app_id", "max_age"})
    target = request.target(options, settings.rtc_app_ids)
    max_age_seconds = parse_max_age(whole_number(options.get("max_age", "0")))
    state = lookup.one(target, request.until, max_age_seconds)
    keys = {**target.as_dict(), "source": state.source, "rtc_request_id": state.rtc_request_id}
    logger.info("Answered.", extra=keys)
    return json_response(HTTPStatus.OK, state.answer())


def query_stream_states(request: Request) -> Response:
    """Tell the states of several users, each an answer or a problem."""
    request.query(())
    body = request.json({"targets", "max_age"})
    targets = parse_targets(body.get("targets"), settings.rtc_app_ids, MAX_TARGETS)
    max_age_seconds = parse_max_age(body.get("max_age", 0))
    outcomes = lookup.some(targets, request.until, max_age_seconds)
    return json_response(HTTPStatus.OK, {"results": [item(outcome.target, outcome.result()) for outcome in outcomes]})


def list_room_states(request: Request) -> Response:
    """List what is known of a room's users, without a call to the vendor."""
    options = request.query({"app_id", "next_token"})
    app_id = request.app_id(options, settings.rtc_app_ids)
    page = table.room(app_id, request.path_id("room_id"), page_key(options, parts=1))
    return page_response("results", [known.state().answer() for known in page.entries], page.next_key)


def put_watch(request: Request) -> Response:
    """Have sweeps ask for a user until the watch expires."""
    target = request.target(request.query({"app_id"}), settings.rtc_app_ids)
    (watch,) = watch_list.add([target], parse_expires_in(request.json({"expires_in"}, default="{}")))
    return json_response(HTTPStatus.OK, watch.as_dict())


def delete_watch(request: Request) -> Response:
    """Have sweeps ask for a user no more."""
    watch_list.remove(request.target(request.query({"app_id"}), settings.rtc_app_ids))
    return {"statusCode": int(HTTPStatus.NO_CONTENT), "headers": {"Cache-Control": "no-store"}, "body": ""}


def post_watches(request: Request) -> Response:
    """Have sweeps ask for several users until their watches expire."""
    request.query(())
    body = request.json({"targets", "expires_in"})
    targets = parse_targets(body.get("targets"), settings.rtc_app_ids, MAX_TARGETS)
    watches = watch_list.add(targets, parse_expires_in(body))
    return json_response(HTTPStatus.OK, {"watches": [watch.as_dict() for watch in watches]})


def list_watches(request: Request) -> Response:
    """List the watches."""
    page = watch_list.page(page_key(request.query({"next_token"}), parts=3))
    return page_response("watches", [watch.as_dict() for watch in page.entries], page.next_key)


# API Gateway has matched the route already: a router of a framework would match it again, and load for a long time.
ROUTES: Mapping[str, Callable[[Request], Response]] = {
    "GET /rooms/{room_id}/users/{user_id}/stream-state": get_stream_state,
    "POST /stream-states/query": query_stream_states,
    "GET /rooms/{room_id}/stream-states": list_room_states,
    "PUT /rooms/{room_id}/users/{user_id}/watch": put_watch,
    "DELETE /rooms/{room_id}/users/{user_id}/watch": delete_watch,
    "POST /watches": post_watches,
    "GET /watches": list_watches,
}


@entry_point
def lambda_handler(event: Any, context: "LambdaContext") -> Response:
    """Answer a request of API Gateway."""
    return respond(event, ROUTES, deadline(context, ANSWER_SECONDS))
