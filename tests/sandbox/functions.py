"""AWS Lambda on loopback: each function in processes of its own, driven over the Lambda Runtime API."""

import contextlib
import importlib.util
import json
import os
import queue
import signal
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

RUNTIME_API_PREFIX = "/2018-06-01/runtime/"
INVOKE_PREFIX = "/2015-03-31/functions/"
MAX_PAYLOAD_BYTES = 6 * 1024 * 1024
# AWS gives 10 s; a busy machine with few cores may need more, and nothing here is about the time of a start.
INIT_TIMEOUT_SECONDS = 60
MAX_ENVIRONMENTS = 8
ACCOUNT_ID = "123456789012"
# The Lambda runtime client exists for Linux only.
HAS_RUNTIME_CLIENT = importlib.util.find_spec("awslambdaric") is not None
RUNTIME_MODULES = ("awslambdaric", "runtime_client", "simplejson", "snapshot_restore_py")


@dataclass(frozen=True)
class Function:
    """What CloudFormation would create: a function's code, layers (first to last), limits and environment."""

    name: str
    handler: str
    code_directory: Path
    layer_directories: tuple[Path, ...]
    timeout_seconds: int
    memory_mb: int
    environment: Mapping[str, str]
    region: str

    @property
    def arn(self) -> str:
        """Name as the runtime reports it."""
        return f"arn:aws:lambda:{self.region}:{ACCOUNT_ID}:function:{self.name}"


@dataclass(frozen=True)
class Invocation:
    """One answered invocation; `error` is the X-Amz-Function-Error header, `payload` then names type and message."""

    payload: Any
    error: str | None
    duration_ms: float

    @property
    def error_type(self) -> str | None:
        """Class name of the exception raised, or Lambda's own error name."""
        return str(self.payload.get("errorType")) if self.error else None


class PayloadTooLarge(Exception):
    """The event is over the 6 MB that a synchronous invocation carries."""


def _failure(kind: str, request_id: str, message: str) -> tuple[bytes, str]:
    body = {"errorType": kind, "errorMessage": f"RequestId: {request_id} Error: {message}"}
    return json.dumps(body).encode(), "Unhandled"


def _service_error(status: int, kind: str, message: str) -> Response:
    return Response(status, json.dumps({"Message": message}).encode(), [("X-Amzn-ErrorType", kind)])


class _Environment:
    """One process of a function, with the Runtime API server that feeds it; it takes one invocation at a time."""

    def __init__(self, function: Function, runtime_directory: Path, log: Path) -> None:
        self._function = function
        self._work: queue.Queue[tuple[str, bytes, float] | None] = queue.Queue()
        self._results: queue.Queue[tuple[bytes, str | None] | None] = queue.Queue()
        self._current = ""
        self._ready = threading.Event()
        self._init_error: tuple[bytes, str] | None = None
        self._broken = False
        self._server = LoopbackServer(self._runtime_api)
        module = "awslambdaric" if (runtime_directory / "awslambdaric").exists() else "plain_runtime"
        with log.open("ab") as output:
            # -S keeps the site-packages of this interpreter out: requests and boto3 must come from the layer.
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-m", module, function.handler],
                cwd=function.code_directory,
                env=self._process_environment(runtime_directory),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        threading.Thread(target=self._watch, daemon=True).start()

    def _process_environment(self, runtime_directory: Path) -> dict[str, str]:
        function = self._function
        # The order of Lambda: the task, the layers (a later one covers an earlier one), then the runtime's own.
        layers = [str(layer / "python") for layer in reversed(function.layer_directories)]
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LANG": "en_US.UTF-8",
            "TZ": ":UTC",
            "PYTHONPATH": os.pathsep.join((str(function.code_directory), *layers, str(runtime_directory))),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AWS_LAMBDA_RUNTIME_API": self._server.authority,
            "AWS_LAMBDA_FUNCTION_NAME": function.name,
            "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_mb),
            "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{function.name}",
            "AWS_LAMBDA_LOG_STREAM_NAME": f"{time.strftime('%Y/%m/%d')}/[$LATEST]{uuid.uuid4().hex}",
            "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
            "AWS_EXECUTION_ENV": "AWS_Lambda_python3.13",
            "_HANDLER": function.handler,
            "LAMBDA_TASK_ROOT": str(function.code_directory),
            "LAMBDA_RUNTIME_DIR": str(runtime_directory),
            "AWS_REGION": function.region,
            "AWS_DEFAULT_REGION": function.region,
            "AWS_ACCESS_KEY_ID": "sandbox",
            "AWS_SECRET_ACCESS_KEY": "sandbox",
            "AWS_SESSION_TOKEN": "sandbox",
            **function.environment,
        }

    def _watch(self) -> None:
        self.process.wait()
        self._results.put(None)
        self._ready.set()

    def _runtime_api(self, request: Request, connection: socket.socket) -> Response | None:
        accepted = Response(202, b'{"status":"OK"}\n', [("Content-Type", "application/json")])
        match [request.method, *request.path.removeprefix(RUNTIME_API_PREFIX).split("/")]:
            case ["GET", "invocation", "next"]:
                self._ready.set()
                work = self._work.get()
                if work is None:
                    return None
                request_id, payload, deadline = work
                trace = f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]};Parent=0123456789abcdef;Sampled=0"
                headers = [
                    ("Content-Type", "application/json"),
                    ("Lambda-Runtime-Aws-Request-Id", request_id),
                    ("Lambda-Runtime-Deadline-Ms", str(int(deadline * 1000))),
                    ("Lambda-Runtime-Invoked-Function-Arn", self._function.arn),
                    ("Lambda-Runtime-Trace-Id", trace),
                ]
                return Response(200, payload, headers)
            case ["POST", "init", "error"]:
                self._init_error = (request.body, "Unhandled")
                return accepted
            case ["POST", "invocation", request_id, "response" | "error" as kind] if request_id == self._current:
                if len(request.body) > MAX_PAYLOAD_BYTES:
                    message = f"Response payload size exceeded maximum allowed size ({MAX_PAYLOAD_BYTES} bytes)."
                    self._broken = True
                    self._results.put(_failure("Function.ResponseSizeTooLarge", request_id, message))
                    return Response(413, b"{}")
                self._results.put((request.body, "Unhandled" if kind == "error" else None))
                return accepted
        return Response(400, b'{"errorType":"InvalidRequestID","errorMessage":"Invalid request ID"}')

    def invoke(self, payload: bytes) -> tuple[bytes, str | None]:
        """Answer and kind of error of one invocation."""
        request_id = self._current = str(uuid.uuid4())
        if not self._ready.wait(INIT_TIMEOUT_SECONDS):
            self.stop()
            return _failure("Sandbox.Timedout", request_id, f"Init timed out after {INIT_TIMEOUT_SECONDS:.2f} seconds")
        timeout_seconds = self._function.timeout_seconds
        self._work.put((request_id, payload, time.time() + timeout_seconds))
        try:
            answer = self._results.get(timeout=timeout_seconds)
        except queue.Empty:
            self.stop()
            return _failure("Sandbox.Timedout", request_id, f"Task timed out after {timeout_seconds:.2f} seconds")
        if answer is not None:
            return answer
        if self._init_error:
            return self._init_error
        code = self.process.wait()
        how = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return _failure("Runtime.ExitError", request_id, f"Runtime exited with error: {how}")

    @property
    def usable(self) -> bool:
        """Whether another invocation can be given to it."""
        return not self._broken and self.process.poll() is None

    def stop(self) -> None:
        """End the process, as Lambda does without warning."""
        self.process.kill()
        self.process.wait()
        self._work.put(None)
        self._server.stop()


class Functions:
    """Every function of the application; its environments start when they are needed and stay for the next call."""

    def __init__(self, functions: Mapping[str, Function], work_directory: Path, *, plain_runtime: bool = False) -> None:
        self.functions = dict(functions)
        self._work_directory = work_directory
        self._runtime_directory = work_directory / "runtime"
        self._runtime_directory.mkdir()
        plain = Path(__file__).with_name("plain_runtime.py")
        (self._runtime_directory / plain.name).symlink_to(plain)
        if HAS_RUNTIME_CLIENT and not plain_runtime:
            self._link_runtime_client()
        self._lock = threading.Lock()
        self._idle: dict[str, list[_Environment]] = {name: [] for name in functions}
        self._all: list[_Environment] = []
        # Lambda would refuse what is over the limit; here it waits, since the limit is this machine's.
        self._slots = {name: threading.BoundedSemaphore(MAX_ENVIRONMENTS) for name in functions}
        self._closed = False

    def _link_runtime_client(self) -> None:
        """Make the runtime client, and nothing else of this interpreter's packages, importable for the functions."""
        for name in RUNTIME_MODULES:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:
                raise RuntimeError(f"the package {name} of the Lambda runtime is not installed")
            origin = Path(spec.origin).parent if spec.submodule_search_locations else Path(spec.origin)
            (self._runtime_directory / origin.name).symlink_to(origin)

    def invoke(self, name: str, event: object) -> Invocation:
        """Invoke synchronously with an event that is turned into JSON, or with bytes sent as they are."""
        payload = event if isinstance(event, bytes) else json.dumps(event).encode()
        started = time.perf_counter()
        body, error = self._invoke(name, payload)
        duration_ms = (time.perf_counter() - started) * 1000
        return Invocation(json.loads(body) if body else None, error, duration_ms)

    def _invoke(self, name: str, payload: bytes) -> tuple[bytes, str | None]:
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise PayloadTooLarge(f"{len(payload)} bytes are over the limit of {MAX_PAYLOAD_BYTES}")
        with self._slots[name]:
            environment = self._take(name)
            answer = environment.invoke(payload)
            with self._lock:
                keep = environment.usable and not self._closed
                if keep:
                    self._idle[name].append(environment)
            if not keep:
                environment.stop()
        return answer

    def _take(self, name: str) -> _Environment:
        with self._lock:
            if self._closed:
                raise RuntimeError("the sandbox is closed")
            while self._idle[name]:
                environment = self._idle[name].pop()
                if environment.usable:
                    return environment
                environment.stop()
            environment = _Environment(self.functions[name], self._runtime_directory, self._log_file(name))
            self._all.append(environment)
            return environment

    def invoke_api(self, request: Request) -> Response:
        """Answer Lambda's own Invoke call, so that the AWS clients reach the functions too."""
        name, _, rest = unquote(request.path).removeprefix(INVOKE_PREFIX).partition("/")
        name = name.removeprefix(f"arn:aws:lambda:{next(iter(self.functions.values())).region}:{ACCOUNT_ID}:function:")
        logical_id = next((key for key, function in self.functions.items() if name in (key, function.name)), None)
        if logical_id is None or rest != "invocations":
            return _service_error(404, "ResourceNotFoundException", f"Function not found: {name}")
        payload = request.body or b"{}"
        try:
            json.loads(payload)
        except ValueError:
            return _service_error(400, "InvalidRequestContentException", "Could not parse request body into json")
        if request.header("X-Amz-Invocation-Type") == "Event":
            threading.Thread(target=self._invoke, args=(logical_id, payload), daemon=True).start()
            return Response(202)
        try:
            body, error = self._invoke(logical_id, payload)
        except PayloadTooLarge as problem:
            return _service_error(413, "RequestTooLargeException", str(problem))
        headers = [("Content-Type", "application/json"), ("X-Amz-Executed-Version", "$LATEST")]
        return Response(200, body, headers + ([("X-Amz-Function-Error", error)] if error else []))

    def _log_file(self, name: str) -> Path:
        return self._work_directory / f"{name}.log"

    def log(self, name: str) -> str:
        """Everything that a function has written to stdout and stderr."""
        file = self._log_file(name)
        return file.read_text("utf-8", "replace") if file.exists() else ""

    def restart(self) -> None:
        """End every environment, so that the next invocation is a cold start."""
        with self._lock:
            environments, self._all = self._all, []
            for idle in self._idle.values():
                idle.clear()
        for environment in environments:
            with contextlib.suppress(OSError):
                environment.stop()

    def stop(self) -> None:
        """End every process and start no other."""
        with self._lock:
            self._closed = True
        self.restart()
