"""The waits of workflows in the table of a sandbox, and waiting for what a test expects."""

import time
from collections.abc import Callable
from typing import Any

from tests.e2e.contents import table_items
from tests.sandbox.stack import Sandbox


def waits(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The waits of workflows in the table."""
    return [item for item in table_items(sandbox) if item["pk"]["S"].startswith("wait#")]


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
