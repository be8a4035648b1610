"""A call with `volcengine`, as its own services make theirs."""

import json
from urllib.parse import urlsplit

from volcengine.ApiInfo import ApiInfo
from volcengine.base.Service import Service
from volcengine.Credentials import Credentials
from volcengine.ServiceInfo import ServiceInfo


def caller(endpoint, access_key_id, secret_access_key):
    """Ask for the state of a user, over one session."""
    url = urlsplit(endpoint)
    credentials = Credentials(access_key_id, secret_access_key, "rtc", "cn-north-1")
    api = ApiInfo("GET", "/", {"Action": "GetUserStreamState", "Version": "2020-12-01"}, {}, {})
    service = Service(ServiceInfo(url.netloc, {}, credentials, 2, 3, url.scheme), {"GetUserStreamState": api})
    # It prefers keys of the environment to those that it is given.
    service.set_ak(access_key_id)
    service.set_sk(secret_access_key)

    def ask(app_id, room_id, user_id):
        ids = {"AppId": app_id, "RoomId": room_id, "UserId": user_id}
        return json.loads(service.get("GetUserStreamState", ids))["Result"]

    return ask
