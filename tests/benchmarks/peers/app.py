"""The function that a user would write around an SDK: Powertools for the route and for the secret."""

import importlib
import os

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.utilities.parameters import get_secret

sdk = importlib.import_module(os.environ["SDK"])
app = APIGatewayHttpResolver()
callers = []


@app.get("/rooms/<room_id>/users/<user_id>/stream-state")
def get_stream_state(room_id, user_id):
    """Tell the state of one user."""
    keys = get_secret(os.environ["RTC_SECRET_ID"], transform="json", max_age=300)
    if not callers:
        callers.append(sdk.caller(os.environ["RTC_ENDPOINT"], keys["access_key_id"], keys["secret_access_key"]))
    return callers[0](os.environ["RTC_APP_IDS"], room_id, user_id)


def lambda_handler(event, context):
    """Answer a request of API Gateway."""
    return app.resolve(event, context)
