"""The loop of a Lambda runtime, for systems on which AWS's own client does not exist."""

import importlib
import json
import os
import sys
import time
import traceback
from http.client import HTTPConnection
from types import SimpleNamespace
from typing import Any


def _call(method: str, path: str, body: object = None) -> tuple[dict[str, str], bytes]:
    connection = HTTPConnection(os.environ["AWS_LAMBDA_RUNTIME_API"])
    connection.request(method, f"/2018-06-01/runtime/{path}", None if body is None else json.dumps(body))
    response = connection.getresponse()
    answer = {name.lower(): value for name, value in response.getheaders()}, response.read()
    connection.close()
    return answer


def _error(problem: BaseException) -> dict[str, Any]:
    print(f"[ERROR] {''.join(traceback.format_exception(problem))}", flush=True)
    trace = traceback.format_list(traceback.extract_tb(problem.__traceback__)[1:])
    return {"errorMessage": str(problem), "errorType": type(problem).__name__, "stackTrace": trace}


def _context(headers: dict[str, str]) -> SimpleNamespace:
    deadline_seconds = int(headers["lambda-runtime-deadline-ms"]) / 1000
    variables = {
        "function_name": "AWS_LAMBDA_FUNCTION_NAME",
        "function_version": "AWS_LAMBDA_FUNCTION_VERSION",
        "memory_limit_in_mb": "AWS_LAMBDA_FUNCTION_MEMORY_SIZE",
        "log_group_name": "AWS_LAMBDA_LOG_GROUP_NAME",
        "log_stream_name": "AWS_LAMBDA_LOG_STREAM_NAME",
    }
    return SimpleNamespace(
        aws_request_id=headers["lambda-runtime-aws-request-id"],
        invoked_function_arn=headers["lambda-runtime-invoked-function-arn"],
        get_remaining_time_in_millis=lambda: max(0, int((deadline_seconds - time.time()) * 1000)),
        **{name: os.environ[variable] for name, variable in variables.items()},
    )


def main() -> None:
    """Import the handler once, then answer invocations until the sandbox ends the process."""
    module, _, function = sys.argv[1].rpartition(".")
    try:
        handler = getattr(importlib.import_module(module), function)
    except BaseException as problem:
        _call("POST", "init/error", _error(problem))
        raise
    while True:
        headers, event = _call("GET", "invocation/next")
        path = f"invocation/{headers['lambda-runtime-aws-request-id']}"
        os.environ["_X_AMZN_TRACE_ID"] = headers["lambda-runtime-trace-id"]
        try:
            _call("POST", f"{path}/response", handler(json.loads(event), _context(headers)))
        except Exception as problem:  # noqa: BLE001 (whatever a handler raises is its answer)
            _call("POST", f"{path}/error", _error(problem))


if __name__ == "__main__":
    main()
