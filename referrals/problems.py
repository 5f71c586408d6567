"""From pydantic's errors to problems in our words, without what was typed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from referrals.errors import Problem

_SAFE_KEY = re.compile(r"[a-z][a-z0-9_\-]{0,39}", re.ASCII)

# pydantic's error type → what is wrong and what would be right; {…} comes from the error's context.
_WORDS = {
    "missing": ("is missing.", "Fill it in."),
    "enum": ("is not one of the choices.", "Use {expected}."),
    "literal_error": ("is not one of the choices.", "Use {expected}."),
    "list_type": ("is not a list.", "Write it in square brackets."),
    "tuple_type": ("is not a list.", "Write it in square brackets."),
    "too_short": ("is too short.", "Give {min_length} or more."),
    "too_long": ("is too long.", "Give {max_length} at most."),
    "string_type": ("is not text.", "Write it in quotes."),
    "string_unicode": ("is not text that can be sent.", "Type it again."),
    "invalid_key": ("holds a key that is not text.", "Take that key out."),
    "string_too_short": ("is too short.", "Use {min_length} characters or more."),
    "string_too_long": ("is too long.", "Use {max_length} characters at most."),
    "string_pattern_mismatch": ("has not the right form.", "It must match {pattern}."),
    "int_type": ("is not a whole number.", "Write it in digits."),
    "int_parsing": ("is not a whole number.", "Write it in digits."),
    "float_type": ("is not a number.", "Write it in digits."),
    "float_parsing": ("is not a number.", "Write it in digits."),
    "bool_type": ("is neither true nor false.", "Write true or false."),
    "bool_parsing": ("is neither true nor false.", "Write true or false."),
    "greater_than": ("is too small.", "It must be more than {gt}."),
    "greater_than_equal": ("is too small.", "It must be {ge} or more."),
    "less_than_equal": ("is too large.", "It must be {le} or less."),
    "union_tag_invalid": ("names no rule that there is.", "Use {expected_tags}."),
    "union_tag_not_found": ("names no rule.", "Give it a check."),
}
_SHAPES = {"model_type", "dict_type", "model_attributes_type", "mapping_type"}


def is_safe_key(key: object) -> bool:
    """Whether a key looks like one of ours, so that it may be shown."""
    return isinstance(key, str) and bool(_SAFE_KEY.fullmatch(key))


def path_of(parts: Sequence[object]) -> str:
    """`incidents.1.on`: names joined by dots, lists counted from 1 as in the CSV columns."""
    shown = []
    for part in parts:
        if isinstance(part, int):
            shown.append(str(part + 1))
        else:
            shown.append(str(part) if is_safe_key(part) else "(a key)")
    return ".".join(shown)


def unknown_key(where: str, key: object, known: Sequence[str], *, private: bool = False) -> Problem:
    """A key that there is not, with the nearest that there is.

    Args:
        where: the key's path, its own name last.
        private: it is from a case, where somebody's name may have been typed as a key: it is
            shown only if it is nearly one of ours.
    """
    from difflib import get_close_matches

    close = get_close_matches(key, known, 1) if isinstance(key, str) else []
    if private and not close:
        where = ".".join([*where.split(".")[:-1], "(a key)"])
    remedy = f"Did you mean {close[0]}?" if close else f"Known here: {', '.join(known)}."
    if not known:
        remedy = "Remove it."
    return Problem(where, "is not known.", remedy, "unknown")


def keys_of(
    model: type[BaseModel], at: tuple[str, ...] = ()
) -> dict[tuple[str, ...], Sequence[str]]:
    """The keys that a model and those within it may hold, for `problems_of`."""
    known: dict[tuple[str, ...], Sequence[str]] = {at: list(model.model_fields)}
    for name, info in model.model_fields.items():
        for part in _parts(info.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                known |= keys_of(part, (*at, name))
    return known


def _parts(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _parts(part)


def problems_of(
    error: ValidationError,
    known: Mapping[tuple[str, ...], Sequence[str]] | None = None,
    *,
    private: bool = False,
) -> Iterator[Problem]:
    """One problem for each of pydantic's errors.

    `known` gives the keys that a place may hold, by its names without list positions; `private`
    is as for `unknown_key`.
    """
    entries = error.errors(include_url=False, include_input=False, include_context=True)
    for entry in entries:
        parts = entry["loc"]
        if entry["type"] == "too_short" and any(
            other["loc"][: len(parts)] == parts for other in entries if other is not entry
        ):
            continue  # only because what it holds is wrong, which is said
        where = path_of(parts) or "(the whole)"
        kind = entry["type"]
        context: Mapping[str, Any] = entry.get("ctx", {})
        if "what" in context and "remedy" in context:
            yield Problem(where, context["what"], context["remedy"], kind)
        elif kind == "extra_forbidden":
            at = tuple(str(part) for part in parts[:-1] if not isinstance(part, int))
            yield unknown_key(where, parts[-1], (known or {}).get(at, ()), private=private)
        elif kind in _SHAPES:
            yield Problem(where, "is not a group of values.", "Write it in braces.", "shape")
        elif kind in _WORDS:
            what, remedy = _WORDS[kind]
            yield Problem(where, what, remedy.format_map(context), kind.replace("_", "-"))
        else:
            # A validator's own ValueError: its text is ours and repeats nothing.
            own = context.get("error")
            text = str(own) if own else "is not valid."
            yield Problem(where, text, "", "invalid")
