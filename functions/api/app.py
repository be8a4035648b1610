"""API Gateway: states, and the watches of the sweep, over HTTP."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.adapters.api_gateway import (
    Request,
    Response,
    json_response,
    page_key,
    page_response,
    respond,
    whole_number,
)
from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import RESERVE_SECONDS, Table
from stream_state.adapters.watch_list import WatchList, parse_expires_in
from stream_state.clock import deadline_of
from stream_state.domain.documents import item
from stream_state.domain.parsing import invalid, parse_max_age, parse_target, parse_target_or_room, parse_targets
from stream_state.domain.requests import MAX_TARGETS
from stream_state.domain.targets import Room, Target
from stream_state.observability import entry_point, logger
from stream_state.services.lookup import Lookup
from stream_state.settings import Settings

settings = Settings.from_environment(os.environ)
table = Table.from_settings(settings)
store = StateStore.from_settings(settings, table)
watch_list = WatchList(table)
lookup = Lookup.from_settings(settings, store, "api")


def get_stream_state(request: Request) -> Response:
    """Answer for one user."""
    query = request.query({"app_id", "max_age"})
    target = request.target(query, settings.rtc_app_ids)
    max_age_seconds = parse_max_age(whole_number(query.get("max_age", "0")))
    logger.append_keys(**target.as_dict())
    answer = lookup.one(target, request.deadline, max_age_seconds)
    logger.info("Answered.", extra={"source": answer.source, "rtc_request_id": answer.rtc_request_id})
    return json_response(HTTPStatus.OK, answer.document())


def query_stream_states(request: Request) -> Response:
    """Answer for several users and whole rooms, each user with its state or a problem."""
    request.query(())
    body = request.json({"targets", "max_age"})
    targets = parse_targets(body.get("targets"), settings.rtc_app_ids, MAX_TARGETS, parse_target_or_room)
    outcomes = lookup.some(targets, request.deadline, parse_max_age(body.get("max_age", 0)))
    return json_response(HTTPStatus.OK, {"results": [item(outcome.target, outcome.result()) for outcome in outcomes]})


def list_room_states(request: Request) -> Response:
    """List the last known states of those who may be in a room; with `refresh` the first page asks the vendor."""
    query = request.query({"app_id", "next_token", "present", "refresh"})
    for name, values in {"present": ("any",), "refresh": ("true", "false")}.items():
        if query.get(name, values[0]) not in values:
            raise invalid(name, f"must be {' or '.join(values)}")
    room, after = request.room(query, settings.rtc_app_ids), page_key(query, parts=1)
    is_refreshed, with_absent = query.get("refresh") == "true", "present" in query
    page = lookup.room(room, after, request.deadline, is_refreshed=is_refreshed, with_absent=with_absent)
    return page_response("results", [item(one.target, one.result()) for one in page.entries], page.next_key)


def put_watch(named: Callable[..., Target | Room], request: Request) -> Response:
    """Have sweeps ask about a user, or about all users of a room, until the watch expires."""
    target = named(request, request.query({"app_id"}), settings.rtc_app_ids)
    (watch,) = watch_list.add([target], parse_expires_in(request.json({"expires_in"}, default="{}")))
    return json_response(HTTPStatus.OK, watch.as_dict())


def delete_watch(named: Callable[..., Target | Room], request: Request) -> Response:
    """Have sweeps ask about a user or a room no more; watches of a room's users stay."""
    watch_list.remove(named(request, request.query({"app_id"}), settings.rtc_app_ids))
    return {"statusCode": int(HTTPStatus.NO_CONTENT), "headers": {"Cache-Control": "no-store"}, "body": ""}


def post_watches(request: Request) -> Response:
    """Have sweeps ask about several users until their watches expire."""
    request.query(())
    body = request.json({"targets", "expires_in"})
    targets = parse_targets(body.get("targets"), settings.rtc_app_ids, MAX_TARGETS, parse_target)
    watches = watch_list.add(targets, parse_expires_in(body))
    return json_response(HTTPStatus.OK, {"watches": [watch.as_dict() for watch in watches]})


def list_watches(request: Request) -> Response:
    """List the watches."""
    page = watch_list.page(page_key(request.query({"next_token"}), parts=3))
    return page_response("watches", [watch.as_dict() for watch in page.entries], page.next_key)


# API Gateway has matched the route already: a framework's router would match it again, and takes long to load.
ROUTES: Mapping[str, Callable[[Request], Response]] = {
    "GET /rooms/{room_id}/users/{user_id}/stream-state": get_stream_state,
    "POST /stream-states/query": query_stream_states,
    "GET /rooms/{room_id}/stream-states": list_room_states,
    "PUT /rooms/{room_id}/users/{user_id}/watch": partial(put_watch, Request.target),
    "DELETE /rooms/{room_id}/users/{user_id}/watch": partial(delete_watch, Request.target),
    "PUT /rooms/{room_id}/watch": partial(put_watch, Request.room),
    "DELETE /rooms/{room_id}/watch": partial(delete_watch, Request.room),
    "POST /watches": post_watches,
    "GET /watches": list_watches,
}


@entry_point
def lambda_handler(event: Any, context: LambdaContext) -> Response:
    """Answer a request of API Gateway."""
    return respond(event, ROUTES, deadline_of(context, RESERVE_SECONDS))
