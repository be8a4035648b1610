"""A call with the core of `volcengine-python-sdk`, whose services have no such action."""

from urllib.parse import urlsplit

from volcenginesdkcore import ApiClient, Configuration, UniversalApi, UniversalInfo


def caller(endpoint, access_key_id, secret_access_key):
    """Ask for the state of a user, over one pool of connections."""
    url = urlsplit(endpoint)
    configuration = Configuration()
    configuration.ak, configuration.sk, configuration.region = access_key_id, secret_access_key, "cn-north-1"
    configuration.host, configuration.scheme = url.netloc, url.scheme
    api = UniversalApi(ApiClient(configuration))
    info = UniversalInfo("GET", "rtc", "2020-12-01", "GetUserStreamState")

    def ask(app_id, room_id, user_id):
        return api.do_call(info, {"AppId": app_id, "RoomId": room_id, "UserId": user_id})

    return ask
