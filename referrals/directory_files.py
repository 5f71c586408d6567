"""Reads config/ into a Directory, and says every mistake in it at once, by file and key.

config/regions/<region>/region.toml      id, title, timezone
config/regions/<region>/areas.toml       [[areas]] with [[areas.districts]]
config/regions/<region>/agencies.toml    [[agencies]]
config/regions/<region>/routes.toml      optional: more routes, [intervention] area = "agency"
config/regions/<region>/postcodes.bin    optional: made by scripts/make_postcode_table.py
config/interventions/<intervention>.toml
templates/email/<template>/{subject.txt.j2,body.txt.j2,body.html.j2}
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

from referrals.answers import read_answer
from referrals.case import shared_facts
from referrals.directory import (
    Agency,
    Directory,
    Intervention,
    Question,
    QuestionType,
    Region,
    plain_name,
)
from referrals.errors import ConfigurationError, InterventionUnknown, Problem
from referrals.postcodes import PostcodeTable
from referrals.problems import keys_of, problems_of, unknown_key
from referrals.rules import DistrictAmong, Level, Rule

TEMPLATE_PARTS = ("subject.txt.j2", "body.txt.j2", "body.html.j2")

_Model = TypeVar("_Model", bound=BaseModel)

# In a file, a check's values stand beside its name.
_IN_CHECK = re.compile(r"(rules\.\d+)\.check\.[a-z-]+\.")


def read_directory(config: Path, templates: Path) -> Directory:
    """Everything in the two folders, checked as a whole.

    Raises:
        ConfigurationError: with every problem found.
    """
    return _Reader(config, templates).read()


def read_intervention(config: Path, templates: Path, intervention_id: str) -> Intervention:
    """One intervention's file by itself, with or without its templates.

    Raises:
        InterventionUnknown: there is no such file.
        ConfigurationError: with every problem of the file.
    """
    file = config / "interventions" / f"{intervention_id}.toml"
    if intervention_id not in {path.stem for path in config.glob("interventions/*.toml")}:
        raise InterventionUnknown(f"There is no {intervention_id}.toml in {file.parent}.")
    reader = _Reader(config, templates)
    found = reader.load_intervention(file)
    if found is None or reader.problems:
        raise ConfigurationError(reader.problems)
    return found


class _Reader:
    def __init__(self, config: Path, templates: Path) -> None:
        self.config = config
        self.templates = templates
        self.problems: list[Problem] = []
        self.regions: dict[str, Region] = {}
        self.agencies: dict[str, Agency] = {}
        self.postcodes: dict[str, PostcodeTable] = {}
        self.interventions: dict[str, Intervention] = {}
        self.files: dict[str, Path] = {}
        self.extra_routes: list[tuple[Path, dict[str, Any]]] = []
        self.added: dict[tuple[str, str], Path] = {}
        """Where a route was added: file by intervention and place."""
        self.faulty: set[str] = set()
        """Regions, agencies and interventions that are there but can't be read."""

    def read(self) -> Directory:
        if not self.config.is_dir():
            self._fault(self.config, "", "is no folder that is there.", "Check REFERRALS_CONFIG.")
            raise ConfigurationError(self.problems)
        region_folders = sorted(path for path in self.config.glob("regions/*") if path.is_dir())
        if not region_folders:
            self._fault(self.config / "regions", "", "holds no region.", "Add a folder for one.")
        for folder in region_folders:
            self._read_region(folder)
        files = sorted(self.config.glob("interventions/*.toml"))
        if not files:
            self._fault(self.config / "interventions", "", "holds no intervention.", "Add a file.")
        for file in files:
            self._read_intervention(file)
        self._check_together()
        if self.problems:
            raise ConfigurationError(self.problems)
        return Directory(self.regions, self.agencies, self.interventions, self.postcodes)

    # One file at a time

    def _read_region(self, folder: Path) -> None:
        region_file, areas_file = folder / "region.toml", folder / "areas.toml"
        raw = self._toml(region_file)
        raw_areas = self._toml(areas_file)
        if raw is not None and raw_areas is not None:
            for key in set(raw_areas) - {"areas"}:
                self.problems.append(unknown_key(self._at(areas_file, key), key, ["areas"]))
            areas = raw_areas.get("areas", [])
            region = self._model(
                Region,
                {**raw, "areas": areas},
                lambda key: areas_file if key.startswith("areas") else region_file,
            )
            if region:
                self._named_as(region_file, region.id, folder.name)
                self._unique(self.regions, region.id, region_file, "id", "A region")
                self.regions[region.id] = region
        if folder.name not in self.regions:
            self.faulty.add(f"regions/{folder.name}")
        self._read_agencies(folder / "agencies.toml")
        self._read_postcodes(folder / "postcodes.bin", folder.name)
        if (folder / "routes.toml").exists():
            routes = self._toml(folder / "routes.toml")
            self.extra_routes.append((folder / "routes.toml", routes or {}))

    def _read_agencies(self, file: Path) -> None:
        raw = self._toml(file)
        if raw is None:
            return
        for key in set(raw) - {"agencies"}:
            self.problems.append(unknown_key(self._at(file, key), key, ["agencies"]))
        entries = raw.get("agencies", [])
        if not isinstance(entries, list) or not entries:
            self._fault(file, "agencies", "lists no agency.", "Add an [[agencies]] table.")
            return
        for number, entry in enumerate(entries, 1):
            prefix = f"agencies.{number}"
            agency = self._model(Agency, entry, lambda _: file, prefix)
            if agency:
                self._unique(self.agencies, agency.id, file, f"{prefix}.id", "An agency")
                self.agencies[agency.id] = agency
            elif isinstance(entry, dict):
                self.faulty.add(f"agencies/{entry.get('id')}")

    def _read_postcodes(self, file: Path, region_id: str) -> None:
        try:
            self.postcodes[region_id] = PostcodeTable.from_bytes(file.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
            self._fault(
                file,
                "",
                f"can't be read: {reason}.",
                "Make it anew: scripts/make_postcode_table.py.",
            )

    def load_intervention(self, file: Path) -> Intervention | None:
        raw = self._toml(file)
        if raw is None:
            return None
        raw.setdefault("template", raw.get("id", file.stem))
        intervention = self._model(Intervention, raw, lambda _: file)
        if intervention:
            self._check_fields(intervention, file)
        return intervention

    def _read_intervention(self, file: Path) -> None:
        intervention = self.load_intervention(file)
        if intervention is None:
            self.faulty.add(f"interventions/{file.stem}")
            return
        self._named_as(file, intervention.id, file.stem)
        if intervention.id in self.interventions:
            other = self._shown(self.files[intervention.id])
            self._fault(file, "id", f"is taken: {other} has it too.", "Give each its own id.")
            return
        self.interventions[intervention.id] = intervention
        self.files[intervention.id] = file
        for part in TEMPLATE_PARTS:
            if not (self.templates / intervention.template / part).is_file():
                self._fault(
                    file,
                    "template",
                    f"needs {intervention.template}/{part}, which is not in "
                    f"{self._shown(self.templates)}.",
                    "Write that file (referrals templates new makes a first one).",
                )

    def _check_fields(self, intervention: Intervention, file: Path) -> None:
        names: set[str] = set()
        for number, question in enumerate(intervention.fields, 1):
            key = f"fields.{number}"
            if question.name in names:
                self._fault(file, f"{key}.name", "is taken.", "Give each field its own name.")
            names.add(question.name)
            self._check_options(question, file, key)
            if question.required and question.sample is None:
                self._fault(
                    file, f"{key}.sample", "is missing.", "Give a sample: the field is required."
                )
            if question.sample is not None:
                try:
                    read_answer(question, question.sample, relative=True)
                except PydanticCustomError as error:
                    words = error.context or {}
                    self._fault(file, f"{key}.sample", words["what"], words["remedy"])

    def _check_options(self, question: Question, file: Path, key: str) -> None:
        chosen = question.type in (QuestionType.CHOICE, QuestionType.CHOICES)
        if chosen and not question.options:
            self._fault(file, f"{key}.options", "is missing.", "A choice needs options.")
        if question.options and not chosen:
            self._fault(
                file, f"{key}.options", "belongs to a choice.", "Set type to choice or choices."
            )
        if len(question.labels) < len(question.options):
            self._fault(file, f"{key}.options", "has a value twice.", "Make each value unique.")

    # All together

    def _check_together(self) -> None:
        places_known = bool(self.regions) and not any(
            name.startswith("regions/") for name in self.faulty
        )
        if places_known and self.agencies:
            self._add_region_routes()
            self._check_places()
        codes: dict[str, str] = {}
        for intervention in self.interventions.values():
            file = self.files[intervention.id]
            if places_known and self.agencies:
                self._check_routes(intervention, file)
            self._check_facts(intervention, file)
            self._check_rules(intervention, file, codes)
            if places_known:
                self._check_rule_places(intervention, file)

    def _add_region_routes(self) -> None:
        for file, routes in self.extra_routes:
            for intervention_id, added in routes.items():
                intervention = self.interventions.get(intervention_id)
                if f"interventions/{intervention_id}" in self.faulty:
                    continue
                if intervention is None:
                    self.problems.append(
                        unknown_key(
                            self._at(file, intervention_id),
                            intervention_id,
                            sorted(self.interventions),
                        )
                    )
                    continue
                if not isinstance(added, dict) or not all(
                    isinstance(agency, str) for agency in added.values()
                ):
                    self._fault(
                        file, intervention_id, "is not a table of routes.", 'Write area = "agency".'
                    )
                    continue
                for key in added:
                    if key not in intervention.routes:
                        self.added[intervention_id, key] = file
                        continue
                    first = self.added.get((intervention_id, key), self.files[intervention_id])
                    self._fault(
                        file,
                        f"{intervention_id}.{key}",
                        f"has a route in {self._shown(first)}.",
                        "Keep one.",
                    )
                areas = {place.area.id for place in self._places() if place.area.id in added}
                self.interventions[intervention_id] = intervention.model_copy(
                    update={
                        "areas": (*intervention.areas, *sorted(areas - set(intervention.areas))),
                        "routes": {**added, **intervention.routes},
                    }
                )

    def _places(self) -> Sequence[Any]:
        return Directory(self.regions, self.agencies, {}).places

    def _check_places(self) -> None:
        seen: dict[str, str] = {}
        titled: dict[tuple[str, str], str] = {}
        for region in self.regions.values():
            file = self.config / "regions" / region.id / "areas.toml"
            own = [area.id for area in region.areas]
            own += [district.id for area in region.areas for district in area.districts]
            for place_id in own:
                if place_id in seen:
                    self._fault(
                        file,
                        "areas",
                        f"has {place_id} twice (also in region {seen[place_id]}).",
                        "Areas and districts share one set of ids: give each its own.",
                    )
                seen[place_id] = region.id
            for kind, entries in (
                ("area", region.areas),
                ("district", [district for area in region.areas for district in area.districts]),
            ):
                for entry in entries:
                    name = (kind, plain_name(entry.title))
                    if name in titled:
                        self._fault(
                            file,
                            "areas",
                            f"has {kind} {entry.id} with the title of {titled[name]}.",
                            "Give each its own title: cases may name places by it.",
                        )
                    titled[name] = entry.id
            table = self.postcodes.get(region.id)
            strangers = sorted(table.districts - set(own)) if table else []
            if strangers:
                self._fault(
                    self.config / "regions" / region.id / "postcodes.bin",
                    "",
                    f"speaks of districts that areas.toml lacks: {', '.join(strangers)}.",
                    "Make it anew: scripts/make_postcode_table.py.",
                )

    def _check_routes(self, intervention: Intervention, file: Path) -> None:
        districts: dict[str, set[str]] = {}
        for place in self._places():
            districts.setdefault(place.area.id, set())
            if place.district:
                districts[place.area.id].add(place.district.id)
        if not intervention.areas:
            self._fault(file, "areas", "is empty.", f"Name some of: {', '.join(districts)}.")
            return
        for number, area in enumerate(intervention.areas, 1):
            key = f"areas.{number}"
            if area not in districts:
                self.problems.append(unknown_key(self._at(file, key), area, list(districts)))
            elif area not in intervention.routes and not (
                districts[area] and districts[area] <= set(intervention.routes)
            ):
                self._fault(
                    file,
                    f"routes.{area}",
                    f"is missing, though areas claims {area}.",
                    f'Write {area} = "<agency>" under [routes].',
                )
        claimed = set(intervention.areas)
        for area in claimed & set(districts):
            claimed |= districts[area]
        for place_id, agency_id in intervention.routes.items():
            added_in = self.added.get((intervention.id, place_id))
            key = f"{intervention.id if added_in else 'routes'}.{place_id}"
            if place_id not in claimed:
                self._fault(
                    added_in or file,
                    key,
                    "is no area or district that areas claims.",
                    f"Claimed are: {', '.join(sorted(claimed))}.",
                )
            if agency_id not in self.agencies and f"agencies/{agency_id}" not in self.faulty:
                self._fault(
                    added_in or file,
                    key,
                    f"names an unknown agency, {agency_id}.",
                    f"Known agencies: {', '.join(sorted(self.agencies))}.",
                )

    def _check_facts(self, intervention: Intervention, file: Path) -> None:
        known = list(shared_facts())
        seen: set[str] = set()
        for group in ("required", "optional"):
            for number, path in enumerate(getattr(intervention.facts, group), 1):
                key = f"facts.{group}.{number}"
                if path not in known:
                    problem = unknown_key(self._at(file, key), path, known)
                    remedy = problem.remedy if problem.remedy.startswith("Did") else _FACTS
                    self.problems.append(Problem(problem.where, f"{path} is no fact.", remedy))
                if path in seen:
                    self._fault(file, key, f"{path} stands twice.", "Keep one.")
                seen.add(path)

    def _check_rules(self, intervention: Intervention, file: Path, codes: dict[str, str]) -> None:
        for number, rule in enumerate(intervention.rules, 1):
            key = f"rules.{number}"
            if rule.code in codes:
                self._fault(
                    file,
                    f"{key}.code",
                    f"{rule.code} is taken in {codes[rule.code]}.",
                    "Give each rule its own code.",
                )
            codes[rule.code] = self._shown(file)
            must = rule.check.needs_answers and rule.level is Level.BLOCK
            for option, name in rule.check.answers_read():
                question = intervention.question(name)
                if question is None:
                    self._fault(
                        file,
                        f"{key}.{option}",
                        f"{name} is no field of this intervention.",
                        "Name one of its [[fields]].",
                    )
                elif must and not question.required:
                    self._fault(
                        file,
                        f"{key}.{option}",
                        f"{rule.code} depends on {name}, which may be left out.",
                        "Set required = true on that field.",
                    )

    def _check_rule_places(self, intervention: Intervention, file: Path) -> None:
        places = [p.id for place in self._places() for p in (place.area, place.district) if p]
        for number, rule in enumerate(intervention.rules, 1):
            if not isinstance(rule.check, DistrictAmong):
                continue
            named = [("districts", district) for district in rule.check.districts]
            for option, place_id in [("area", rule.check.area), *named]:
                if place_id not in places:
                    where = self._at(file, f"rules.{number}.{option}")
                    self.problems.append(unknown_key(where, place_id, places))

    # Words

    def _toml(self, file: Path) -> dict[str, Any] | None:
        try:
            return tomllib.loads(file.read_bytes().decode("utf-8-sig"))
        except FileNotFoundError:
            self._fault(file, "", "is missing.", "Write it.")
        except tomllib.TOMLDecodeError as error:
            self._fault(file, "", f"is not TOML: {error}.", "Mend that line.")
        except UnicodeDecodeError:
            self._fault(file, "", "is not UTF-8 text.", "Save it as UTF-8.")
        except OSError as error:
            self._fault(file, "", f"can't be read: {error.strerror}.", "Check its permissions.")
        return None

    def _model(
        self, model: type[_Model], raw: Any, file_of: Callable[[str], Path], prefix: str = ""
    ) -> _Model | None:
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            for problem in problems_of(error, _known_keys(model)):
                file = file_of(problem.where)
                where = _IN_CHECK.sub(r"\1.", problem.where)
                key = f"{prefix}.{where}".removesuffix(".(the whole)") if prefix else where
                self._fault(file, key, problem.what, problem.remedy)
            return None

    def _named_as(self, file: Path, found: str, expected: str) -> None:
        if found != expected:
            self._fault(
                file, "id", f"is {found}, but its place is named {expected}.", "Make them the same."
            )

    def _unique(self, taken: Iterable[str], new: str, file: Path, key: str, kind: str) -> None:
        if new in taken:
            self._fault(file, key, f"{kind} named {new} is there already.", "Give it its own id.")

    def _shown(self, file: Path) -> str:
        for root in (self.config.parent, self.templates.parent.parent):
            if file.is_relative_to(root):
                return file.relative_to(root).as_posix()
        return str(file)

    def _at(self, file: Path, key: str) -> str:
        return f"{self._shown(file)}: {key}" if key else self._shown(file)

    def _fault(self, file: Path, key: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(self._at(file, key), what, remedy, "configuration"))


def _known_keys(model: type[BaseModel]) -> dict[tuple[str, ...], Sequence[str]]:
    known = keys_of(model)
    for check in get_args(Rule.model_fields["check"].annotation):
        (name,) = get_args(check.model_fields["name"].annotation)
        values = [value for value in check.model_fields if value != "name"]
        known["rules", "check", name] = [*Rule.model_fields, *values]
    return known


_FACTS = "Facts are named as in a case: people.victim.name, location.place, incidents.what."
