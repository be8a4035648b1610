"""The loop of a Lambda runtime, for systems on which AWS's own client does not exist."""

import importlib
import json
import os
import sys
import time
import traceback
from http.client import HTTPConnection, HTTPResponse
from types import SimpleNamespace


def _call(method: str, path: str, body: object = None) -> tuple[HTTPResponse, bytes]:
    connection = HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request(method, f"/2018-06-01/runtime/invocation/{path}", None if body is None else json.dumps(body))
    response = connection.getresponse()
    return response, response.read()


def main() -> None:
    """Import the handler once, then answer invocations until the sandbox ends the process."""
    module, _, function = sys.argv[1].rpartition(".")
    handler = getattr(importlib.import_module(module), function)
    while True:
        head, event = _call("GET", "next")
        request_id = head.headers["Lambda-Runtime-Aws-Request-Id"]
        deadline_ms = int(head.headers["Lambda-Runtime-Deadline-Ms"])
        context = SimpleNamespace(
            aws_request_id=request_id,
            invoked_function_arn=head.headers["Lambda-Runtime-Invoked-Function-Arn"],
            function_name=os.environ["AWS_LAMBDA_FUNCTION_NAME"],
            memory_limit_in_mb=os.environ["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"],
            get_remaining_time_in_millis=lambda deadline_ms=deadline_ms: deadline_ms - int(time.time() * 1000),
        )
        try:
            _call("POST", f"{request_id}/response", handler(json.loads(event), context))
        except Exception as problem:  # noqa: BLE001 (whatever a handler raises is its answer)
            traceback.print_exc()
            _call("POST", f"{request_id}/error", {"errorMessage": str(problem), "errorType": type(problem).__name__})


if __name__ == "__main__":
    main()
