"""The JSON Schemas of docs, to hold documents against."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

DOCS = Path(__file__).parents[2] / "docs"
_SCHEMAS = {path.name.split(".")[0]: json.loads(path.read_text()) for path in DOCS.glob("*.schema.json")}
_REGISTRY: Registry[Any] = Registry().with_resources(
    (schema["$id"], Resource.from_contents(schema)) for schema in _SCHEMAS.values()
)
_VALIDATORS = {name: Draft202012Validator(schema, registry=_REGISTRY) for name, schema in _SCHEMAS.items()}


def conforms(name: str, document: Any) -> None:
    """Check that a document keeps the schema of that name."""
    _VALIDATORS[name].validate(document)
