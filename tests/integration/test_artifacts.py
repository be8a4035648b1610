"""The built artifacts: bytecode that Lambda will use, no module that is not needed, no data that is not read."""

import importlib.util
import json
import shutil
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.importtime import BUILT, FUNCTIONS, LAYERS, interpreter

# Bytecode of Python 3.13 begins with this number, in each of its releases, and with the flags of PEP 552.
MAGIC = (3571).to_bytes(2, "little") + b"\r\n"
UNCHECKED_HASH, CHECKED_HASH, FILE_TIME = (flags.to_bytes(4, "little") for flags in (0b01, 0b11, 0b00))
SERVICES = ("dynamodb", "secretsmanager", "sqs", "stepfunctions")
MAX_BYTES = 20 * 1024 * 1024
# By function: the modules that loading it may import, those of Python itself included; and the clients that it makes.
MAX_MODULES = {
    "ApiFunction": 574,
    "TaskFunction": 574,
    "SweepFunction": 577,
    "CallbackFunction": 465,
    "BoardFunction": 460,
}
CLIENTS = {
    "ApiFunction": {"dynamodb": 1, "secretsmanager": 1},
    "TaskFunction": {"dynamodb": 1, "secretsmanager": 1, "sqs": 1},
    "SweepFunction": {"dynamodb": 1, "secretsmanager": 1, "sqs": 1},
    "CallbackFunction": {"dynamodb": 1, "secretsmanager": 1, "sqs": 1},
    "BoardFunction": {"dynamodb": 1},
}
NOT_NEEDED = {"asyncio", "aws_lambda_powertools.event_handler", "aws_xray_sdk", "pydantic"}
# The callback function loads the vendor's client for its first recheck, the board never.
WITHOUT_VENDOR = NOT_NEEDED | {"requests", "stream_state.adapters.volcengine"}
NOT_NEEDED_BY = {"CallbackFunction": WITHOUT_VENDOR, "BoardFunction": WITHOUT_VENDOR}
LOAD = """
import json, sys
from importlib.machinery import SourceFileLoader
import botocore.session

compiled, clients = [], []
compile_source, create_client = SourceFileLoader.source_to_code, botocore.session.Session.create_client
SourceFileLoader.source_to_code = lambda self, data, path, **more: (
    compiled.append(path), compile_source(self, data, path, **more))[1]
botocore.session.Session.create_client = lambda self, service, **more: (
    clients.append(service), create_client(self, service, **more))[1]
import app
print(json.dumps({"compiled": compiled, "clients": clients, "modules": sorted(sys.modules)}))
"""
ENDPOINTS = """
import itertools, json, sys
import boto3
from botocore.config import Config

session, found = boto3.session.Session(), {}
for service, partition in itertools.product(sys.argv[1:], session.get_available_partitions()):
    for region, fips in itertools.product(session.get_available_regions(service, partition), (False, True)):
        client = session.client(service, region, config=Config(use_fips_endpoint=fips))
        found[f"{service} {region} {fips}"] = client.meta.endpoint_url
        operations = sorted(client.meta.service_model.operation_names)
    if session.get_available_regions(service, partition):
        found[service] = operations
print(json.dumps(found))
"""


def load(function: str, built: Path = BUILT) -> dict[str, Any]:
    """The sources that loading a function compiles, the clients that it makes, the modules that it imports."""
    found: dict[str, Any] = json.loads(interpreter(function, "-c", LOAD, built=built).stdout)
    return found


def modules(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Each source file and where Python looks for its bytecode."""
    for source in folder.rglob("*.py"):
        yield source, Path(importlib.util.cache_from_source(str(source)))


def without_bytecode(folder: Path) -> list[str]:
    """The source files whose bytecode Lambda would not use, or would have to check first."""
    faulty = []
    for source, cached in modules(folder):
        expected = MAGIC + UNCHECKED_HASH + importlib.util.source_hash(source.read_bytes())
        if not cached.exists() or cached.read_bytes()[:16] != expected:
            faulty.append(source.name)
    return faulty


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The artifacts after they were packed with SAM's time stamps and unpacked as by Lambda, without those."""
    directory = tmp_path_factory.mktemp("unpacked")
    for name in (*FUNCTIONS, *LAYERS):
        archive = directory / f"{name}.zip"
        with zipfile.ZipFile(archive, "w") as packed:
            for file in sorted(path for path in (BUILT / name).rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(str(file.relative_to(BUILT / name)), (1980, 1, 1, 0, 0, 0))
                packed.writestr(entry, file.read_bytes())
        shutil.unpack_archive(archive, directory / name)
    return directory


@pytest.mark.parametrize("function", FUNCTIONS)
def test_nothing_is_compiled_when_a_function_is_loaded(unpacked: Path, function: str) -> None:
    assert load(function, unpacked)["compiled"] == []


@pytest.mark.parametrize("name", [*FUNCTIONS, *LAYERS])
def test_each_module_has_bytecode_that_is_used_unchecked(unpacked: Path, name: str) -> None:
    assert len(list(modules(unpacked / name))) > 0
    assert without_bytecode(unpacked / name) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda bytecode: None,
        lambda bytecode: MAGIC + FILE_TIME + bytecode[8:],
        lambda bytecode: MAGIC + CHECKED_HASH + bytes(8) + bytecode[16:],
        lambda bytecode: (3495).to_bytes(2, "little") + b"\r\n" + bytecode[4:],
    ],
    ids=["missing", "by file time", "checked", "of another Python"],
)
def test_bytecode_that_lambda_would_not_use_is_found(
    unpacked: Path, tmp_path: Path, spoil: Callable[[bytes], bytes | None]
) -> None:
    shutil.copytree(unpacked, tmp_path, dirs_exist_ok=True)
    source = tmp_path / "StreamStateLayer" / "python" / "stream_state" / "adapters" / "signing.py"
    cached = Path(importlib.util.cache_from_source(str(source)))
    bytecode = spoil(cached.read_bytes())
    cached.unlink() if bytecode is None else cached.write_bytes(bytecode)

    assert without_bytecode(tmp_path / "StreamStateLayer") == ["signing.py"]
    assert load("ApiFunction", tmp_path)["compiled"] == [str(source)]


def test_the_bytecode_is_that_of_the_deployed_runtime() -> None:
    assert sys.version_info[:2] == (3, 13)
    assert importlib.util.MAGIC_NUMBER == MAGIC
    assert "Runtime: python3.13" in (BUILT / "template.yaml").read_text()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_imports_no_module_and_makes_no_client_that_it_does_not_need(function: str) -> None:
    loaded = load(function)

    assert len(loaded["modules"]) <= MAX_MODULES[function]
    assert not NOT_NEEDED_BY.get(function, NOT_NEEDED) & set(loaded["modules"])
    assert Counter(loaded["clients"]) == CLIENTS[function]


def test_the_trimmed_data_says_the_same_of_the_services_used_in_every_region() -> None:
    trimmed = json.loads(interpreter("ApiFunction", "-c", ENDPOINTS, *SERVICES).stdout)
    whole = json.loads(
        interpreter("none", "-c", f"import site; site.main()\n{ENDPOINTS}", *SERVICES, built=Path("none")).stdout
    )

    assert trimmed == whole
    assert trimmed["sqs cn-north-1 False"] == "https://sqs.cn-north-1.amazonaws.com.cn"
    assert trimmed["sqs us-gov-west-1 False"] == "https://sqs.us-gov-west-1.amazonaws.com"


def test_the_data_of_other_services_and_of_resources_is_left_out() -> None:
    packages = BUILT / "DependenciesLayer" / "python"

    assert {entry.name for entry in (packages / "botocore" / "data").iterdir() if entry.is_dir()} == set(SERVICES)
    assert not {"data", "examples"} & {entry.name for entry in (packages / "boto3").iterdir()}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_with_its_layers_is_small(function: str) -> None:
    files = [file for name in (function, *LAYERS) for file in (BUILT / name).rglob("*") if file.is_file()]

    assert sum(file.stat().st_size for file in files) <= MAX_BYTES


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_is_pure_python(layer: str) -> None:
    assert [file.name for file in (BUILT / layer).rglob("*") if file.suffix in {".so", ".pyd", ".dylib"}] == []
