"""The function that a user would write around an SDK: Powertools for the route and for the secret."""

import importlib
import os
from functools import cache

import boto3
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


@cache
def table():
    """DynamoDB, as boto3 comes."""
    return boto3.client("dynamodb")


def handler_with_table(event, context):
    """The same with what a limit of all instances and a kept answer need at least: two writes, without their rules."""
    name, key = os.environ["TABLE_NAME"], {"pk": {"S": "peer"}, "sk": {"S": "peer"}}
    add = {"UpdateExpression": "ADD calls :one", "ExpressionAttributeValues": {":one": {"N": "1"}}}
    table().update_item(TableName=name, Key=key, **add)
    answer = app.resolve(event, context)
    table().put_item(TableName=name, Item=key | {"sk": {"S": "answer"}, "answer": {"S": answer["body"]}})
    return answer
