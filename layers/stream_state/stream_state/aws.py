"""Clients of AWS services, made by botocore: boto3 would load what it needs for S3 at each cold start."""

from functools import cache
from typing import Any

import botocore.session
from botocore.config import Config


def client(service: str, **options: Any) -> Any:
    """A client with the options of botocore's `Config`; it serves many threads, making it does not."""
    return _session().create_client(service, config=Config(**options))


@cache
def _session() -> botocore.session.Session:
    """One for all clients: it keeps the descriptions of services that it has read."""
    return botocore.session.get_session()
