"""Tables to measure against, each in a process of its own: moto's, and one that takes less of the time measured."""

import asyncio
import json
import logging
import multiprocessing
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.exceptions import ClientError

TABLE = "states"
SPAWN = multiprocessing.get_context("spawn")
AWS = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def table(serve: Callable[[Any], None]) -> Iterator[str]:
    """The address of a table."""
    urls = SPAWN.Queue()
    process = SPAWN.Process(target=serve, args=(urls,), daemon=True)
    process.start()
    try:
        yield urls.get(timeout=60)
    finally:
        process.terminate()
        process.join()


def moto(urls: Any) -> None:
    """Serve all of moto, with a table."""
    # Imported here because it takes long, and the processes that call must not need it.
    from moto.moto_server.threaded_moto_server import ThreadedMotoServer

    os.environ.update(AWS)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    boto3.client("dynamodb", endpoint_url=url).create_table(
        TableName=TABLE,
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
        AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name in ("pk", "sk")],
        BillingMode="PAY_PER_REQUEST",
    )
    urls.put(url)
    threading.Event().wait()


def in_memory(urls: Any) -> None:
    """Serve what the project uses of DynamoDB, with a table in memory, and a queue and workflows that take all."""
    from tests.unit.fakes import FakeQueue
    from tests.unit.memory import MemoryTable

    memory: Any = MemoryTable()
    memory.send_message_batch = FakeQueue().send_message_batch
    memory.send_task_success = lambda **_: {}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await read_head(reader)).decode():
            length = re.search(r"(?i)content-length: *(\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            operation = re.search(r"(?i)x-amz-target: *\w+\.(\w+)", head)
            status, answer = "200 OK", {}
            try:
                name = re.sub(r"(?<!^)(?=[A-Z])", "_", operation[1] if operation else "").lower()
                answer = getattr(memory, name)(**json.loads(body))
            except ClientError as error:
                code = error.response["Error"]["Code"]
                status, answer = "400 Bad Request", {"__type": code, "Item": error.response.get("Item")}
            text = json.dumps(answer).encode()
            writer.write(f"HTTP/1.1 {status}\r\nContent-Length: {len(text)}\r\n\r\n".encode() + text)

    async def read_head(reader: asyncio.StreamReader) -> bytes:
        try:
            return await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return b""

    async def run() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        urls.put(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await server.serve_forever()

    asyncio.run(run())
