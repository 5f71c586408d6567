"""The JSON Schema of a case, made from the models and from config/.

Source: JSON Schema 2020-12.
"""

from __future__ import annotations

from typing import Any

from referrals.case import Case
from referrals.directory import Directory, Intervention, Question, QuestionType
from referrals.routing import area_ids, district_ids

_DATE = {
    "type": "string",
    "pattern": r"^(\d{4}-\d{2}-\d{2}|\d{2}/\d{2}/\d{4})$",
    "examples": ["2026-01-31"],
}


def case_schema(directory: Directory, needed_by: Intervention | None = None) -> dict[str, Any]:
    """What a case may hold; with `needed_by`, what it must hold for that intervention."""
    schema = Case.model_json_schema()
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    _loosen_dates(schema)
    interventions = sorted(directory.interventions.values(), key=lambda one: one.id)
    schema["properties"]["answers"] = {
        "type": "object",
        "title": "Answers, by intervention",
        "additionalProperties": False,
        "properties": {one.id: answers_schema(one) for one in interventions},
    }
    location = schema["$defs"]["Location"]["properties"]
    location["area"]["examples"] = list(area_ids(directory))
    location["district"]["examples"] = list(district_ids(directory))
    schema["$defs"]["Location"]["anyOf"] = [
        {"required": [key]} for key in ("area", "district", "postcode")
    ]
    if needed_by:
        schema["title"] = f"Case for {needed_by.title}"
        schema["required"] = sorted({*schema["required"], "answers"})
        schema["properties"]["answers"]["required"] = [needed_by.id]
        schema["allOf"] = [_needs(path) for path in needed_by.facts.required]
    return schema


def answers_schema(intervention: Intervention) -> dict[str, Any]:
    return {
        "type": "object",
        "title": intervention.title,
        "additionalProperties": False,
        "properties": {question.name: _question(question) for question in intervention.fields},
        "required": [question.name for question in intervention.fields if question.required],
    }


def _question(question: Question) -> dict[str, Any]:
    values = [option.value for option in question.options]
    form: dict[str, Any]
    match question.type:
        case QuestionType.YES_NO:
            form = {"type": "boolean"}
        case QuestionType.DATE:
            form = dict(_DATE)
        case QuestionType.MOMENT:
            form = {
                "type": "string",
                "pattern": r"^(\d{4}-\d{2}-\d{2}|\d{2}/\d{2}/\d{4})[T ]\d{2}:\d{2}(:00)?$",
                "examples": ["2026-01-31 18:00"],
            }
        case QuestionType.NUMBER:
            form = {"type": "integer"}
            form |= {"minimum": question.minimum} if question.minimum is not None else {}
            form |= {"maximum": question.maximum} if question.maximum is not None else {}
        case QuestionType.CHOICE:
            form = {"enum": values}
        case QuestionType.CHOICES:
            form = {"type": "array", "items": {"enum": values}, "minItems": 1}
        case QuestionType.LINE | QuestionType.TEXT:
            form = {"type": "string", "minLength": max(question.min_length, 1)}
            form |= {"maxLength": question.max_length} if question.max_length else {}
    form["title"] = question.label
    if question.hint:
        form["description"] = question.hint
    form["sensitivity"] = str(question.sensitivity)
    return form


def _needs(path: str) -> dict[str, Any]:
    """A schema that demands one fact, however deep."""
    group, *rest = path.split(".")
    if group == "incidents":
        items = {"required": rest} if rest else {}
        inner: dict[str, Any] = {"minItems": 1, "items": items}
    else:
        inner = _needs(".".join(rest)) if rest else {}
        inner = inner | {"not": {"type": "null"}}
    return {"required": [group], "properties": {group: inner}}


def _loosen_dates(node: Any) -> None:
    """We take 31/01/2026 as well as 2026-01-31."""
    if isinstance(node, dict):
        if node.get("format") == "date":
            del node["format"]
            node.update(_DATE)
        for inner in node.values():
            _loosen_dates(inner)
    elif isinstance(node, list):
        for inner in node:
            _loosen_dates(inner)
