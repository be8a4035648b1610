"""Clients of AWS services, made by botocore: boto3 would load what it needs for S3 at each cold start."""

from functools import cache
from typing import Any

import botocore.session
from botocore.config import Config

# botocore would join its own name from thirty parts for each request, which takes a tenth of a call's processor time.
_USER_AGENT = "stream-state-for-volcengine-rtc"


def client(service: str, **options: Any) -> Any:
    """A client with the options of botocore's `Config`; it serves many threads, making it does not."""
    return _session().create_client(service, config=Config(user_agent=_USER_AGENT, **options))


@cache
def _session() -> botocore.session.Session:
    """One for all clients: it keeps the descriptions of services that it has read."""
    return botocore.session.get_session()
