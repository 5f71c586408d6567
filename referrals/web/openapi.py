"""The API's description, made of the operations, the types of what they tell, and config/.

Source: OpenAPI 3.1.1; JSON Schema 2020-12.
"""

from __future__ import annotations

import inspect
import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from referrals import __version__
from referrals.directory import Directory
from referrals.samples import sample_case
from referrals.schema import case_schema
from referrals.telling import ErrorJson

if TYPE_CHECKING:
    from referrals.web.api_operations import Operation
    from referrals.web.site import Site

JSON, EML, TEXT = "application/json", "message/rfc822", "text/plain"
_AT = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"\{(\w+)\}")
_SUMMARY = """\
The same operations as the `referrals` command's, with the same JSON. The body is a case as it
stands in a file. Every problem is told at once, and none repeats what was typed. The recipient of
a referral is the directory's; no request can give one.
"""
_REFUSALS = {
    400: "The request can't be understood.",
    401: "No token, or none that is good.",
    403: "The token's role does not allow it.",
    404: "There is no such thing.",
    406: "It can't be told in that form.",
    409: "It can't be done as things are.",
    413: "The body is too large.",
    415: "The body is not declared as JSON.",
    422: "There are things to put right, or a rule says no.",
    429: "Too many requests: wait as long as Retry-After says.",
    500: "A fault of ours.",
    503: "The configuration or the outbox can't be used just now.",
}
_ALWAYS = (401, 403, 422, 429, 500, 503)
_WITH_BODY = (413, 415)
_BY_GUARD = {404: True, 413: False}
"""Refused before the API is reached, in plain words; whether the API itself may refuse so, too."""
_PATHS = {
    "intervention": "An intervention.",
    "interventions": "Interventions, separated by commas.",
    "reference": "A referral's reference, as K7QM-29TX-WCF4.",
    "agency": "An agency's id.",
}


class RefusalJson(TypedDict):
    """`ok` is false."""

    ok: bool
    error: ErrorJson


class Description:
    """Made when first asked for, and again on another day or when the directory changes."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self._operations = operations
        self._gate = threading.Lock()
        self._made: tuple[Directory, date, bytes] | None = None

    def of(self, site: Site) -> bytes:
        """The document, as JSON in UTF-8."""
        service = site.service
        directory, today = service.directory, service.today()
        with self._gate:
            made = self._made
            if made is None or made[0] is not directory or made[1] != today:
                whole = document(self._operations, directory, today)
                made = directory, today, json.dumps(whole, ensure_ascii=False).encode()
                self._made = made
        return made[2]


def document(operations: Sequence[Operation], directory: Directory, today: date) -> dict[str, Any]:
    answers = _Answers([*(one.answer for one in operations), RefusalJson])
    names = sorted(directory.interventions)
    case = case_schema(directory)
    del case["$schema"]
    schemas = {
        **answers.schemas,
        **{name: _moved(inner) for name, inner in case.pop("$defs").items()},
        "Case": _moved(case),
    }
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        place = paths.setdefault(f"/api/v1{one.path}", {})
        place[one.method.lower()] = _operation(one, answers, directory)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "referrals",
            "summary": "Referrals for people harmed by hate crime and anti-social behaviour.",
            "description": _SUMMARY,
            "version": __version__,
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "examples": {
                "case": {
                    "summary": "A made-up case, complete for every intervention",
                    "value": sample_case(directory, names, today),
                }
            },
            "responses": {
                str(status): _refusal(status, words, answers) for status, words in _REFUSALS.items()
            },
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "`referrals tokens add` makes one, with a role.",
                }
            },
        },
    }


def _operation(one: Operation, answers: _Answers, directory: Directory) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": one.run.__name__,
        "summary": one.title,
        "description": f"{inspect.getdoc(one.run)}\n\nNeeds the role {one.role}.",
        "parameters": [*_in_path(one, directory), *_in_query(one, sorted(directory.interventions))],
        "responses": {},
    }
    if one.takes_case:
        example = {"$ref": "#/components/examples/case"}
        content = {"schema": {"$ref": _AT.format(model="Case")}, "examples": {"case": example}}
        made["requestBody"] = {"required": True, "content": {JSON: content}}
    content = {JSON: {"schema": answers.schema_of(one.answer)}}
    if 406 in one.refusals:
        content[EML] = {"schema": {"type": "string"}}
    for status in one.statuses:
        made["responses"][str(status)] = {"description": one.title, "content": content}
    with_body = _WITH_BODY if one.takes_case else ()
    for status in sorted({*_ALWAYS, *with_body, *one.refusals}):
        made["responses"][str(status)] = {"$ref": f"#/components/responses/{status}"}
    return made


def _in_path(one: Operation, directory: Directory) -> Iterator[dict[str, Any]]:
    names = sorted(directory.interventions)
    examples = {
        "intervention": names[0],
        "interventions": ",".join(names[:2]),
        "agency": next(one.id for one in directory.agencies.values() if one.email),
    }
    for name in _PARAMETER.findall(one.path):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        if name in examples:
            schema["examples"] = [examples[name]]
        yield {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATHS[name],
            "schema": schema,
        }


def _in_query(one: Operation, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    whole = _tidied(one.query.model_json_schema())
    within = whole.get("$defs", {})
    for name, schema in whole.get("properties", {}).items():
        description = schema.pop("description")
        if "anyOf" in schema:  # what is not given is not in the query: there is no null there
            [schema] = [kind for kind in schema.pop("anyOf") if kind.get("type") != "null"]
        if "$ref" in schema:
            schema = within[schema["$ref"].rpartition("/")[2]]
        schema.pop("default", None)
        if name == "intervention":
            schema.update(
                {"items": {"enum": list(names)}} if "items" in schema else {"enum": list(names)}
            )
        elif schema.get("format") == "date":
            del schema["format"]
            schema |= {"pattern": r"^\d{4}-\d{2}-\d{2}$", "examples": ["2026-01-31"]}
        yield {
            "name": name,
            "in": "query",
            "required": name in whole.get("required", ()),
            "description": description,
            "schema": schema,
        }


def _refusal(status: int, words: str, answers: _Answers) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if _BY_GUARD.get(status, True):
        content[JSON] = {"schema": answers.schema_of(RefusalJson)}
    if status in _BY_GUARD:
        content[TEXT] = {"schema": {"type": "string"}}
    made: dict[str, Any] = {"description": words, "content": content}
    if status == 401:
        made["headers"] = {"WWW-Authenticate": {"required": True, "schema": {"type": "string"}}}
    if status == 429:
        made["headers"] = {"Retry-After": {"required": True, "schema": {"type": "string"}}}
    return made


class _Answers:
    """The schemas of what is told. Each `XJson` becomes a component `X`, closed."""

    def __init__(self, kinds: Iterable[Any]) -> None:
        self._keys = {repr(kind): kind for kind in kinds}
        made, whole = TypeAdapter.json_schemas(
            [(key, "serialization", TypeAdapter(kind)) for key, kind in self._keys.items()],
            ref_template=_AT,
        )
        self._of = {key: _renamed(_tidied(schema)) for (key, _), schema in made.items()}
        self.schemas = {
            _name(name): _closed(_renamed(_tidied(schema)))
            for name, schema in whole["$defs"].items()
        }

    def schema_of(self, kind: Any) -> Any:
        return self._of[repr(kind)]


def _name(name: str) -> str:
    return name.removesuffix("Json")


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    return schema


def _tidied(node: Any) -> Any:
    """Without the titles that pydantic makes of names."""
    if isinstance(node, Mapping):
        return {
            key: _tidied(inner)
            for key, inner in node.items()
            if not (key == "title" and isinstance(inner, str))
        }
    return [_tidied(inner) for inner in node] if isinstance(node, list) else node


def _renamed(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {
            key: _name(inner) if key == "$ref" else _renamed(inner) for key, inner in node.items()
        }
    return [_renamed(inner) for inner in node] if isinstance(node, list) else node


def _moved(node: Any) -> Any:
    """References of a schema that stands alone, as they are within the document."""
    if isinstance(node, Mapping):
        return {
            key: inner.replace("#/$defs/", "#/components/schemas/")
            if key == "$ref"
            else _moved(inner)
            for key, inner in node.items()
        }
    return [_moved(inner) for inner in node] if isinstance(node, list) else node
