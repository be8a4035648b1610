"""API Gateway: states, and the watches of the sweep, over HTTP."""

import os
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler.api_gateway import ApiGatewayResolver, ProxyEventType, Response, Router
from aws_lambda_powertools.event_handler.exceptions import NotFoundError
from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.errors import InvalidTarget, StreamStateError
from stream_state.gateway import (
    Request,
    by_route,
    json_response,
    page_key,
    page_response,
    problem_response,
    whole_number,
)
from stream_state.lookup import Lookup, deadline, item
from stream_state.model import parse_targets
from stream_state.observability import entry_point, log_error, logger
from stream_state.settings import Settings
from stream_state.table import StateTable
from stream_state.validation import parse_max_age
from stream_state.watch_list import WatchList, parse_expires_in

MAX_TARGETS = 100
# Kept of the time, to write what the last calls told, and to answer.
ANSWER_SECONDS = 4

settings = Settings.from_environment(os.environ)
table = StateTable.from_settings(settings)
watch_list = WatchList(table)
lookup = Lookup.from_settings(settings, table, "api")
router = Router()  # type: ignore[no-untyped-call]  # Powertools leaves it so


def request() -> Request:
    """The request that is being answered."""
    return Request(router.current_event.raw_event)


@router.get("/rooms/{room_id}/users/{user_id}/stream-state")
def get_stream_state() -> Response[str]:
    """Tell the state of one user."""
    options = request().query({"app_id", "max_age"})
    target = request().target(options, settings.rtc_app_ids)
    max_age_seconds = parse_max_age(whole_number(options.get("max_age", "0")))
    state = lookup.one(target, deadline(router.lambda_context, ANSWER_SECONDS), max_age_seconds)
    keys = {**target.as_dict(), "source": state.source, "rtc_request_id": state.rtc_request_id}
    logger.info("Answered.", extra=keys)
    return json_response(HTTPStatus.OK, state.answer())


@router.post("/stream-states/query")
def query_stream_states() -> Response[str]:
    """Tell the states of several users, each an answer or a problem."""
    body = request().json({"targets", "max_age"})
    targets = parse_targets(body.get("targets"), settings.rtc_app_ids, MAX_TARGETS)
    max_age_seconds = parse_max_age(body.get("max_age", 0))
    outcomes = lookup.some(targets, deadline(router.lambda_context, ANSWER_SECONDS), max_age_seconds)
    return json_response(HTTPStatus.OK, {"results": [item(outcome.target, outcome.result()) for outcome in outcomes]})


@router.get("/rooms/{room_id}/stream-states")
def list_room_states() -> Response[str]:
    """List what is known of a room's users, without a call to the vendor."""
    options = request().query({"app_id", "next_token"})
    app_id = request().app_id(options, settings.rtc_app_ids)
    page = table.room(app_id, request().path_id("room_id"), page_key(options))
    return page_response("results", [known.state().answer() for known in page.entries], page.next_key)


@router.put("/rooms/{room_id}/users/{user_id}/watch")
def put_watch() -> Response[str]:
    """Have sweeps ask for a user until the watch expires."""
    target = request().target(request().query({"app_id"}), settings.rtc_app_ids)
    (watch,) = watch_list.add([target], parse_expires_in(request().json({"expires_in"}, default="{}")))
    return json_response(HTTPStatus.OK, watch.as_dict())


@router.delete("/rooms/{room_id}/users/{user_id}/watch")
def delete_watch() -> Response[str]:
    """Have sweeps ask for a user no more."""
    watch_list.remove(request().target(request().query({"app_id"}), settings.rtc_app_ids))
    return Response(HTTPStatus.NO_CONTENT, headers={"Cache-Control": "no-store"})


@router.post("/watches")
def post_watches() -> Response[str]:
    """Have sweeps ask for several users until their watches expire."""
    body = request().json({"targets", "expires_in"})
    targets = parse_targets(body.get("targets"), settings.rtc_app_ids, MAX_TARGETS)
    watches = watch_list.add(targets, parse_expires_in(body))
    return json_response(HTTPStatus.OK, {"watches": [watch.as_dict() for watch in watches]})


@router.get("/watches")
def list_watches() -> Response[str]:
    """List the watches."""
    page = watch_list.page(page_key(request().query({"next_token"})))
    return page_response("watches", [watch.as_dict() for watch in page.entries], page.next_key)


def tell_problem(error: StreamStateError) -> Response[str]:
    """Answer with an error as a problem."""
    log_error(error)
    return problem_response(error, router.current_event.raw_event)


def tell_unknown_route(_: NotFoundError) -> Response[str]:
    """Answer for a route that is not one of these, which API Gateway does not send here of itself."""
    return tell_problem(InvalidTarget("This path and method are not part of this API.", status=HTTPStatus.NOT_FOUND))


router.exception_handler(StreamStateError)(tell_problem)
router.exception_handler(NotFoundError)(tell_unknown_route)
resolvers = {
    "2.0": ApiGatewayResolver(ProxyEventType.APIGatewayProxyEventV2),
    "1.0": ApiGatewayResolver(ProxyEventType.APIGatewayProxyEvent),
}
for resolver in resolvers.values():
    resolver.include_router(router)


@entry_point
def lambda_handler(event: Any, context: LambdaContext) -> dict[str, Any]:
    """Answer a request of API Gateway."""
    version, routed = by_route(event)
    return resolvers[version].resolve(routed, context)
