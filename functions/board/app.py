"""CloudWatch: the custom widget of the dashboard that shows the board."""

import os
from collections.abc import Mapping
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext

from stream_state.adapters.state_store import StateStore
from stream_state.adapters.table import Table
from stream_state.domain.board import DOCUMENTATION, html_of
from stream_state.domain.requests import BoardRequest
from stream_state.observability import entry_point
from stream_state.services.board import read_page
from stream_state.settings import Settings

# Somebody waits for the page, and a scan takes longer than other requests.
READ_TIMEOUT_SECONDS = 3

settings = Settings.from_environment(os.environ)
store = StateStore.from_settings(settings, Table.from_settings(settings, READ_TIMEOUT_SECONDS))


@entry_point
def lambda_handler(event: Any, context: LambdaContext) -> str | dict[str, str]:
    """Answer with a page of the board in HTML, or with the widget's documentation."""
    if isinstance(event, Mapping) and event.get("describe") is True:
        return {"markdown": DOCUMENTATION}
    request = BoardRequest.parse(event)
    return html_of(read_page(request, store, settings), request, context.invoked_function_arn)
