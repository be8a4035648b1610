"""AWS Lambda on loopback: each function in processes of its own, driven over the Lambda Runtime API."""

import importlib.util
import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tests.sandbox.server import LoopbackServer, Request, Response

INVOKE_PREFIX = "/2015-03-31/functions/"
# AWS allows 10 s. A busy machine with few cores may need more, and no test here is about the time of a start.
INIT_TIMEOUT_SECONDS = 60
MAX_ENVIRONMENTS = 8
ACCOUNT_ID = "123456789012"
REGION = "eu-central-1"
FUNCTION_PREFIX = f"arn:aws:lambda:{REGION}:{ACCOUNT_ID}:function:"
# The Lambda runtime client exists for Linux only.
HAS_RUNTIME_CLIENT = importlib.util.find_spec("awslambdaric") is not None
RUNTIME = "awslambdaric" if HAS_RUNTIME_CLIENT else "plain_runtime"
RUNTIME_MODULES = ("awslambdaric", "runtime_client", "simplejson", "snapshot_restore_py")
# The payload of an invocation, and the value of the X-Amz-Function-Error header.
Outcome = tuple[bytes, str | None]


@dataclass(frozen=True)
class Function:
    """A function as CloudFormation would create it: code, layers (first to last), limits and environment."""

    arn: str
    handler: str
    code_directory: Path
    layer_directories: tuple[Path, ...]
    timeout_seconds: int
    memory_mb: int
    environment: Mapping[str, str]
    log_format: str = "Text"

    @property
    def name(self) -> str:
        """Last part of the ARN."""
        return self.arn.rpartition(":")[2]


@dataclass(frozen=True)
class Invocation:
    """An answered invocation; with `error`, the X-Amz-Function-Error header, `payload` names type and message."""

    payload: Any
    error: str | None
    duration_ms: float

    @property
    def error_type(self) -> str | None:
        """Class name of the exception raised, or Lambda's own error name."""
        return str(self.payload.get("errorType")) if self.error else None


def name_of(reference: str) -> str:
    """The name of the function that a name or an ARN means, with or without an alias."""
    return reference.removeprefix(FUNCTION_PREFIX).partition(":")[0]


class _Environment:
    """One process of a function and its Runtime API server; it handles one invocation at a time."""

    def __init__(self, function: Function, runtime_directory: Path, log: Path) -> None:
        self._function = function
        self._work: queue.Queue[tuple[str, bytes, float] | None] = queue.Queue()
        # None: the process has ended.
        self._outcomes: queue.Queue[Outcome | None] = queue.Queue()
        self._ready = threading.Event()
        self._init_error: Outcome | None = None
        self._server = LoopbackServer(self._runtime_api)
        # The order of Lambda: the task, the layers (a later layer hides an earlier layer), then the runtime's own.
        layers = [layer / "python" for layer in reversed(function.layer_directories)]
        environment = {
            "PATH": os.defpath,
            "TZ": ":UTC",
            "PYTHONPATH": os.pathsep.join(map(str, (function.code_directory, *layers, runtime_directory))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_LAMBDA_RUNTIME_API": self._server.authority,
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
            "AWS_LAMBDA_LOG_FORMAT": function.log_format,
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "_HANDLER": function.handler,
            "LAMBDA_TASK_ROOT": str(function.code_directory),
            **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION"), REGION),
            **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"), "sandbox"),
            **function.environment,
        }
        # -S keeps the site-packages of this interpreter out: requests and boto3 must come from the layer.
        command = [sys.executable, "-S", "-m", RUNTIME, function.handler]
        with log.open("ab") as output:
            streams: Any = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
            self.process = subprocess.Popen(
                command, cwd=function.code_directory, env=environment, start_new_session=True, **streams
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        self.process.wait()
        self._outcomes.put(None)
        self._ready.set()

    def _runtime_api(self, request: Request, connection: socket.socket) -> Response | None:
        match request.path.removeprefix("/2018-06-01/runtime/").split("/"):
            case ["invocation", "next"]:
                self._ready.set()
                if not (work := self._work.get()):
                    return None
                request_id, payload, deadline = work
                headers = {
                    "Content-Type": "application/json",
                    "Lambda-Runtime-Aws-Request-Id": request_id,
                    "Lambda-Runtime-Deadline-Ms": str(int(deadline * 1000)),
                    "Lambda-Runtime-Invoked-Function-Arn": self._function.arn,
                    "Lambda-Runtime-Trace-Id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]};Sampled=0",
                }
                return Response(200, payload, list(headers.items()))
            case ["init", "error"]:
                self._init_error = (request.body, "Unhandled")
            case ["invocation", _, kind]:
                self._outcomes.put((request.body, "Unhandled" if kind == "error" else None))
        return Response(202, b"{}")

    def invoke(self, payload: bytes) -> Outcome:
        """Invoke once, and wait for the outcome."""
        request_id, timeout_seconds = str(uuid.uuid4()), self._function.timeout_seconds
        self._ready.wait(INIT_TIMEOUT_SECONDS)
        self._work.put((request_id, payload, time.time() + timeout_seconds))
        try:
            if outcome := self._outcomes.get(timeout=timeout_seconds) or self._init_error:
                return outcome
            kind, message = "Runtime.ExitError", f"Runtime exited with error: exit status {self.process.poll()}"
        except queue.Empty:
            self.stop()
            kind, message = "Sandbox.Timedout", f"Task timed out after {timeout_seconds:.2f} seconds"
        problem = {"errorType": kind, "errorMessage": f"RequestId: {request_id} Error: {message}"}
        return json.dumps(problem).encode(), "Unhandled"

    def stop(self) -> None:
        """End the process without warning, as Lambda does."""
        self.process.kill()
        self.process.wait()
        self._work.put(None)
        self._server.stop()


class Functions:
    """Every function of the application; an environment starts when it is needed and stays for the next call."""

    def __init__(self, functions: Mapping[str, Function], work_directory: Path) -> None:
        self.functions = dict(functions)
        self._work_directory = work_directory
        self._runtime_directory = work_directory / "runtime"
        self._runtime_directory.mkdir()
        # The functions can import the runtime, and nothing else of this interpreter's packages.
        runtime = [Path(__file__).with_name("plain_runtime.py")]
        for spec in map(importlib.util.find_spec, RUNTIME_MODULES if HAS_RUNTIME_CLIENT else ()):
            assert spec
            origin = Path(str(spec.origin))
            runtime.append(origin.parent if spec.submodule_search_locations else origin)
        for file in runtime:
            (self._runtime_directory / file.name).symlink_to(file)
        self._environments: dict[str, list[_Environment]] = {name: [] for name in functions}
        # Lambda would refuse an invocation over the limit; here it waits, since the limit is this machine's.
        self._slots: dict[str, queue.LifoQueue[_Environment | None]] = {name: queue.LifoQueue() for name in functions}
        for slots in self._slots.values():
            for _ in range(MAX_ENVIRONMENTS):
                slots.put(None)
        self._starting = threading.Lock()
        self._is_closed = False

    def invoke(self, name: str, event: object) -> Invocation:
        """Invoke synchronously with an event, which is sent as JSON, or with bytes, which are sent as they are."""
        payload = event if isinstance(event, bytes) else json.dumps(event).encode()
        started = time.perf_counter()
        # The environment that was used last, if there is one.
        environment = self._slots[name].get()
        try:
            if environment is None or environment.process.poll() is not None:
                environment = self._start(name)
            body, error = environment.invoke(payload)
        finally:
            self._slots[name].put(environment)
        return Invocation(json.loads(body) if body else None, error, (time.perf_counter() - started) * 1000)

    def _start(self, name: str) -> _Environment:
        with self._starting:
            if self._is_closed:
                raise RuntimeError("the sandbox is closed")
            log = self._work_directory / f"{name}.log"
            environment = _Environment(self.functions[name], self._runtime_directory, log)
            self._environments[name].append(environment)
            return environment

    def invoke_api(self, request: Request) -> Response:
        """Answer Lambda's own Invoke call, so that AWS clients reach the functions too."""
        name = name_of(unquote(request.path).removeprefix(INVOKE_PREFIX).partition("/")[0])
        for logical_id, function in self.functions.items():
            if name in (logical_id, function.name):
                invocation = self.invoke(logical_id, request.body or b"{}")
                headers = [("X-Amz-Function-Error", invocation.error)] if invocation.error else []
                return Response(200, json.dumps(invocation.payload).encode(), headers)
        return Response(404, b"{}", [("X-Amzn-ErrorType", "ResourceNotFoundException")])

    def log(self, name: str) -> str:
        """All that a function has written to stdout and stderr."""
        file = self._work_directory / f"{name}.log"
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def processes(self, name: str) -> list[int]:
        """The ids of the processes of a function."""
        return [environment.process.pid for environment in self._environments[name]]

    def restart(self) -> None:
        """End every environment, so that the next invocation is a cold start."""
        with self._starting:
            environments = [environment for started in self._environments.values() for environment in started]
            self._environments = {name: [] for name in self.functions}
        for environment in environments:
            environment.stop()

    def stop(self) -> None:
        """End every process and start no other."""
        self._is_closed = True
        self.restart()
