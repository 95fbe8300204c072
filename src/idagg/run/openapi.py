"""The API's description: an OpenAPI 3.1 document, made of its operations and their models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from idagg import __version__
from idagg.run import problems
from idagg.run.operations import Operation

_ALWAYS = (400, 401, 403, 405, 406, 500)
_REF = "#/components/schemas/{model}"
_WHEN = {
    400: "A parameter is wrong or unknown, a token is in the query, or the Host field cannot be read",
    401: "The token is missing or wrong",
    403: "The listener was addressed by a name that is not its own",
    404: "There is no such window",
    405: "Only GET and HEAD are there",
    406: "Accept takes no form that this answer has",
    500: "idagg failed; its log has the reason",
    503: "The store cannot be asked",
}


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    models = {model for one in operations for model in one.answers.values() if issubclass(model, BaseModel)}
    inputs: list[Any] = [
        (model, "serialization") for model in sorted(models, key=lambda model: model.__name__)
    ]
    _, schemas = models_json_schema(inputs, by_alias=True, ref_template=_REF)
    components = dict(schemas.get("$defs", {}))
    components["Problem"] = TypeAdapter(problems.Problem).json_schema(ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "idagg",
            "version": __version__,
            "summary": "Counts of unique ids, read back",
            "description": "Times are UTC. Counts are of the whole namespace, whichever machine answers.",
        },
        "paths": {one.path: {"get": _operation(one)} for one in operations},
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic", "description": "The token is the password"},
            },
        },
        "security": [{}, {"bearer": []}, {"basic": []}],
    }


def _operation(operation: Operation) -> dict[str, Any]:
    good: dict[str, Any] = {
        "description": operation.summary,
        "content": {media: {"schema": _schema(model)} for media, model in operation.answers.items()},
    }
    answers: dict[str, Any] = {"200": good}
    if operation.etag:
        good["headers"] = {
            "ETag": {"schema": {"type": "string"}, "description": "Of an answer that is final"}
        }
        answers["304"] = {"description": "The answer is the one that `If-None-Match` names"}
    for status in sorted({*_ALWAYS, *operation.problems}):
        answers[str(status)] = _problem(status)
    return {
        "operationId": operation.id,
        "summary": operation.summary,
        **({"description": operation.description} if operation.description else {}),
        "parameters": [*_path_parameters(operation.in_path), *_query_parameters(operation)],
        "responses": answers,
    }


def _problem(status: int) -> dict[str, Any]:
    found: dict[str, Any] = {
        "description": _WHEN.get(status, HTTPStatus(status).phrase),
        "content": {problems.CONTENT_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}},
    }
    field = {401: "WWW-Authenticate", 405: "Allow", 503: "Retry-After"}.get(status)
    if field:
        found["headers"] = {field: {"schema": {"type": "string"}, "required": True}}
    return found


def _schema(model: type) -> dict[str, Any]:
    return {"$ref": _REF.format(model=model.__name__)} if issubclass(model, BaseModel) else {"type": "string"}


def _path_parameters(described: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": description,
            "schema": {"type": "string"},
            "example": "2026-11-22T10:53:00Z",
        }
        for name, description in described.items()
    ]


def _query_parameters(operation: Operation) -> list[dict[str, Any]]:
    properties = operation.query.model_json_schema(by_alias=True, ref_template=_REF)["properties"]
    found = []
    for name, schema in properties.items():
        described = dict(schema)
        # What is left out is None inside, and cannot be given as null in a query.
        if kinds := described.pop("anyOf", None):
            described |= next(kind for kind in kinds if kind != {"type": "null"})
        if described.get("default", "") is None:
            del described["default"]
        for key in ("title", "description", "examples"):
            described.pop(key, None)
        parameter = {"name": name, "in": "query", "description": schema["description"], "schema": described}
        if "examples" in schema:
            parameter["example"] = schema["examples"][0]
        found.append(parameter)
    return found
