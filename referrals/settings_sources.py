"""Where settings come from, the first that has a value wins:

1. the environment, `REFERRALS_RELAY_HOST` for `relay.host`;
2. `.env` in the folder that one is in;
3. the secrets folder that `REFERRALS_SECRETS` names: a file a setting, such as `relay_password`;
4. `settings.toml` in the config folder (`REFERRALS_CONFIG`, else the shipped one);
5. the defaults in `settings.py`.

Passwords are refused in settings.toml: it is the file that gets copied and committed.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ValidationError

from referrals import settings_relays
from referrals.errors import ConfigurationError, Problem
from referrals.problems import problems_of
from referrals.settings import (
    DeliverySettings,
    MailSettings,
    RelaySettings,
    Settings,
    WebSettings,
    is_database_url,
)

PREFIX = "REFERRALS_"
DOTENV = Path(".env")
_GROUPS: Mapping[str, type[BaseModel]] = {
    "mail": MailSettings,
    "relay": RelaySettings,
    "delivery": DeliverySettings,
    "web": WebSettings,
}
_SECRET_KEYS = (
    "relay.password",
    "web.metrics_token",
    "web.oidc_client_secret",
    "web.proxy_secret",
)


def shipped_folder(name: str) -> Path:
    """`config` or `templates`: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).parent
    inside = package / "_shipped" / name
    return inside if inside.is_dir() else package.parent / name


def config_folder(settings: Settings) -> Path:
    return settings.config or shipped_folder("config")


def templates_folder(settings: Settings) -> Path:
    """The folder that holds one folder a template."""
    return settings.templates or shipped_folder("templates") / "email"


def variable_of(key: str) -> str:
    """`REFERRALS_RELAY_HOST` for `relay.host`."""
    return PREFIX + key.replace(".", "_").upper()


def setting_keys() -> Iterator[str]:
    """Every setting by its key, groups flattened; `settings_relays` has those of further relays."""
    for name in Settings.model_fields:
        if name == "relays":
            continue
        if name in _GROUPS:
            yield from (f"{name}.{inner}" for inner in _GROUPS[name].model_fields)
        else:
            yield name


def read_settings() -> Settings:
    """The settings in force.

    Raises:
        ConfigurationError: with every problem, by variable or by file and key.
    """
    if DOTENV.is_file() or any(name.startswith(PREFIX) for name in os.environ):
        return _read_all()
    # Only the file is left: pydantic-settings, slow to import, has nothing to add to it.
    file = settings_file({})
    try:
        return Settings.model_validate(_from_file(file))
    except ValidationError as error:
        raise ConfigurationError(list(_placed(error, file))) from None


def settings_file(dotenv: Mapping[str, str | None]) -> Path:
    named = os.environ.get(variable_of("config")) or dotenv.get(variable_of("config"))
    return (Path(named) if named else shipped_folder("config")) / "settings.toml"


def _read_all() -> Settings:
    from dotenv import dotenv_values
    from pydantic_settings import (
        BaseSettings,
        EnvSettingsSource,
        InitSettingsSource,
        NestedSecretsSettingsSource,
        PydanticBaseSettingsSource,
        SettingsConfigDict,
    )
    from pydantic_settings.exceptions import SettingsError

    try:
        dotenv = dotenv_values(DOTENV) if DOTENV.is_file() else {}
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            [Problem(str(DOTENV), "can't be read.", "Save it as UTF-8, readable by you.")]
        ) from None
    file = settings_file(dotenv)
    named = os.environ.get(variable_of("secrets")) or dotenv.get(variable_of("secrets"))
    secrets = Path(named) if named else None
    problems = list(_strangers((*os.environ, *dotenv)))
    if secrets and not secrets.is_dir():
        problems.append(
            Problem(variable_of("secrets"), "names a folder that is not there.", "Make it.")
        )
    if problems:
        raise ConfigurationError(problems)
    from_file = _from_file(file)

    class AllSources(Settings, BaseSettings):
        model_config = SettingsConfigDict(
            env_prefix=PREFIX,
            env_nested_delimiter="_",
            env_nested_max_split=1,
            env_ignore_empty=True,
            extra="forbid",
            frozen=True,
            hide_input_in_errors=True,
        )

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            folder = NestedSecretsSettingsSource(
                file_secret_settings,
                secrets_dir=secrets,
                secrets_dir_missing="ok",
                secrets_prefix="",
                secrets_nested_delimiter="_",
            )
            # As with variables: an empty file is there for who has to name one.
            folder.env_vars = {name: value for name, value in folder.env_vars.items() if value}
            toml = InitSettingsSource(settings_cls, from_file)
            environment = EnvSettingsSource(settings_cls)
            environment.env_vars = _ours(os.environ)
            of_dotenv = EnvSettingsSource(settings_cls)
            of_dotenv.env_vars = _ours(dotenv)
            sources: list[PydanticBaseSettingsSource] = []
            for source in (environment, of_dotenv, folder):
                prefix = source.env_prefix.lower()
                others, relays = settings_relays.split_off(
                    {name.removeprefix(prefix): given for name, given in source.env_vars.items()}
                )
                source.env_vars = {f"{prefix}{name}": given for name, given in others.items()}
                sources += [source, InitSettingsSource(settings_cls, {"relays": relays})]
            return *sources, toml

    try:
        return AllSources()
    except ValidationError as error:
        raise ConfigurationError(list(_placed(error, file, dotenv, secrets))) from None
    except (OSError, UnicodeDecodeError):
        raise ConfigurationError(
            [Problem(str(secrets), "holds a file that can't be read.", "Save it as UTF-8.")]
        ) from None
    except SettingsError:
        # A variable for a whole group, REFERRALS_RELAY={...}: its text may hold a password.
        groups = " and ".join(variable_of(group) for group in _GROUPS)
        raise ConfigurationError(
            [Problem(groups, "can't be given as a whole.", "Give one variable a setting.")]
        ) from None


def _ours(variables: Mapping[str, str | None]) -> dict[str, str | None]:
    """Those that are set and have our prefix, as pydantic-settings wants them: in lower case.

    Others may stand in a `.env` too, and in lower case they are not ours.
    """
    return {
        name.lower(): value
        for name, value in variables.items()
        if value and name.startswith(PREFIX)
    }


def _from_file(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(
            [Problem(str(file), f"is not TOML: {error}.", "Mend it.")]
        ) from None
    except (OSError, ValueError):  # ValueError: not UTF-8, or a NUL in the file's name
        raise ConfigurationError(
            [Problem(str(file), "can't be read.", "Save it as UTF-8, readable by you.")]
        ) from None
    problems = []
    for key in (*_SECRET_KEYS, *_secrets_of_relays(values)):
        *groups, name = key.split(".")
        found: Any = values
        for group in groups:
            found = found.get(group) if isinstance(found, dict) else None
        if isinstance(found, dict) and name in found:
            problems.append(
                Problem(
                    f"{file}: {key}",
                    "is a secret and may not stand in this file.",
                    f"Use {variable_of(key)} or a file {key.replace('.', '_')} in the secrets "
                    "folder, and change the secret if the file was shared.",
                )
            )
    problems += settings_relays.misnamed(values, file)
    for key in ("database", "outbox"):
        if is_database_url(values.get(key)) and _has_password(values[key]):
            problems.append(
                Problem(
                    f"{file}: {key}",
                    "holds a password, which may not stand in this file.",
                    f"Take it out, and use {variable_of('database_password')}, a file "
                    "database_password in the secrets folder, or PGPASSFILE.",
                )
            )
    for key in ("config", "secrets", "database_password"):
        if key in values:
            problems.append(
                Problem(f"{file}: {key}", "can't be set here.", f"Use {variable_of(key)}.")
            )
    if problems:
        raise ConfigurationError(problems)
    return values


def _secrets_of_relays(values: Mapping[str, Any]) -> Iterator[str]:
    relays = values.get("relays")
    for name in relays if isinstance(relays, dict) else ():
        yield from (f"relays.{name}.{key}" for key in settings_relays.SECRET_KEYS)


def _has_password(url: str) -> bool:
    from urllib.parse import parse_qs, urlsplit

    try:
        parts = urlsplit(url)
    except ValueError:
        return True  # for all we know
    return parts.password is not None or "password" in parse_qs(parts.query)


def _strangers(names: tuple[str, ...]) -> Iterator[Problem]:
    """Variables with our prefix that set nothing: a mistyped one must not pass unnoticed."""
    from difflib import get_close_matches

    known = [variable_of(key) for key in setting_keys()]
    for name in dict.fromkeys(names):
        end = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and name not in known:
            if end.isupper() and settings_relays.key_of(end.lower()):
                continue
            known_ends = [variable.removeprefix(PREFIX) for variable in known]
            known_ends += map(str.upper, settings_relays.nearly(end.lower()))
            close = get_close_matches(end, known_ends, 1)
            remedy = (
                f"Did you mean {PREFIX}{close[0]}?" if close else "See `referrals doctor --help`."
            )
            yield Problem(name, "is not a setting.", remedy, "unknown")


def _placed(
    error: ValidationError,
    file: Path,
    dotenv: Mapping[str, str | None] = MappingProxyType({}),
    secrets: Path | None = None,
) -> Iterator[Problem]:
    known: dict[tuple[str, ...], Sequence[str]] = {(): list(Settings.model_fields)}
    known |= {(group,): list(model.model_fields) for group, model in _GROUPS.items()}
    for entry in error.errors(include_url=False, include_input=False, include_context=False):
        if entry["loc"][0] == "relays":
            known[tuple(map(str, entry["loc"][:2]))] = settings_relays.KEYS
    for problem in problems_of(error, known):
        variable = variable_of(problem.where)
        if variable in os.environ:
            where = variable
        elif variable in dotenv:
            where = f"{DOTENV}: {variable}"
        elif secrets and (secrets / problem.where.replace(".", "_")).is_file():
            where = str(secrets / problem.where.replace(".", "_"))
        else:
            where = f"{file}: {problem.where}"
        yield Problem(where, problem.what, problem.remedy, problem.code)
