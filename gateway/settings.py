"""Settings: one typed section per concern, from one TOML file and ``HAVENGATE__SECTION__KEY`` variables.

Later wins: defaults, the TOML file, the short variables (``HAVENGATE_HOME``, ``HAVENGATE_DEV_API_KEY``,
``HAVENGATE_KEYRING``, ``PORT``), the ``HAVENGATE__…`` variables, the command line.  An unknown key, wherever it stands, refuses to start with one
line that names it: a misspelt safety setting must never be silently ignored.  No message holds a value, so none
can show a secret.  Settings do not change while the process runs; the policy does (`gateway/policy/loader.py`).
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from gateway.errors import StartupError

PREFIX: Final = "HAVENGATE__"
DELIMITER: Final = "__"
SHORT_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "HAVENGATE_HOME": ("home",),
    "HAVENGATE_DEV_API_KEY": ("auth", "dev_api_key"),
    "HAVENGATE_KEYRING": ("store", "keyring"),
    "PORT": ("server", "port"),
}
SECRET_WORDS: Final = frozenset({"key", "token", "secret", "password", "authorization", "credential"})
STARS: Final = "**********"
PERSONA: Final = (
    "You are a warm, plain-spoken companion in a text chat. Listen first. Answer in two or three short sentences: "
    "say back what you heard, then ask one open question. You are a computer program, not a human being, a doctor or "
    "a therapist, and you say so when asked. Never diagnose, never name medicines or doses, never promise outcomes, "
    "and never tell anyone to keep something secret. When you do not know, say that you do not know."
)


class Section(BaseModel):
    """A group of settings: frozen, unknown keys refused, no value in its errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class ServerSettings(Section):
    """Where the gateway listens, and the limits on what it reads."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    """0 lets the system choose a free port."""
    max_body_bytes: int = Field(default=1_048_576, ge=1_024, le=16_777_216)
    max_messages: int = Field(default=256, ge=1, le=4_096)
    max_message_chars: int = Field(default=32_768, ge=1, le=32_768)
    """Code points; a detector judges at most 32,768 (`detectors.api.Detector.judge`)."""
    max_total_chars: int = Field(default=65_536, ge=1, le=1_048_576)
    """Code points of all messages of one request together; each of them is judged."""
    max_streams: int = Field(default=256, ge=1, le=65_536)
    graceful_shutdown_s: float = Field(default=25.0, ge=0.0, le=600.0)


class StoreSettings(Section):
    """The database, and the keys that seal what it holds."""

    url: SecretStr | None = None
    """``postgresql://…`` or ``sqlite:///PATH``; None is SQLite in the state folder (`Settings.database_url`)."""
    keyring: SecretStr | None = None
    """The keys themselves: 32 random bytes in base64, or a key file's content.  Every gateway on one database has the
    same."""
    keyring_path: Path | None = None
    """A file that holds them (mode 0600); None is ``keyring.json`` in the state folder."""


class EventsSettings(Section):
    """Where hints between processes go: Redis or Valkey.  Without ``url`` they stay in this process."""

    url: SecretStr | None = None
    """``redis://``, ``rediss://`` or ``unix://``; may hold a password."""
    channel: str = Field(default="havengate", pattern=r"^[A-Za-z0-9_.:-]{1,64}$")
    """Gateways that share a record share a channel; two houses on one server must not."""

    @field_validator("url")
    @classmethod
    def _of_redis(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_redis(url.get_secret_value()):
            raise ValueError("must look like redis://HOST:PORT/0, rediss://… or unix:///PATH")
        return url


class BackendSettings(Section):
    """The language model: an entry point of the group ``havengate.backends`` and its own options."""

    kind: str = Field(default="llama_cpp", min_length=1, max_length=64)
    options: dict[str, Any] = Field(default={}, repr=False)
    silence_s: float = Field(default=60.0, gt=0.0, le=600.0)
    """Longest wait for the model's next word; after it the person gets a care message."""


class DetectorSettings(Section):
    """One detector: an entry point of the group ``havengate.detectors`` and its own options."""

    kind: str = Field(min_length=1, max_length=64)
    options: dict[str, Any] = Field(default={}, repr=False)
    enabled: bool = True


class JudgeSettings(Section):
    """How long a verdict may take, and how many are remembered.  A late verdict is ``unavailable``."""

    timeout_s: float = Field(default=2.0, gt=0.0, le=30.0)
    cache_entries: int = Field(default=4_096, ge=0, le=1_048_576)


class PolicySettings(Section):
    """The policy file; ``None`` is the bundled one."""

    path: Path | None = None
    reload_check_s: float = Field(default=2.0, gt=0.0, le=3_600.0)


class HoldbackSettings(Section):
    """How much of an answer waits for its verdict (`gateway/pipeline/holdback.py`), in code points."""

    first_chars: int = Field(default=60, ge=32, le=4_096)
    window_chars: int = Field(default=280, ge=80, le=4_096)
    overlap_chars: int = Field(default=140, ge=0, le=4_096)

    @model_validator(mode="after")
    def _in_order(self) -> HoldbackSettings:
        if self.first_chars > self.window_chars:
            raise ValueError("must satisfy first_chars <= window_chars")
        return self


class TelemetrySettings(Section):
    """What operators see.  ``otlp_endpoint`` is a base URL such as ``http://collector:4318``."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$")


class AuthSettings(Section):
    """Keys.  ``dev_api_key`` is for one machine and one developer; unset, the command makes one and prints it."""

    dev_api_key: SecretStr | None = Field(default=None, min_length=8, max_length=256)
    key_cache_ttl_s: float = Field(default=5.0, ge=0.0, le=300.0)


class PersonaSettings(Section):
    """What the model is told to be, and how much it may say."""

    system_prompt: str = Field(default=PERSONA, min_length=1, max_length=8_192)
    default_max_tokens: int = Field(default=512, ge=1, le=2_048)
    cap_max_tokens: int = Field(default=2_048, ge=1, le=32_768)

    @model_validator(mode="after")
    def _in_order(self) -> PersonaSettings:
        if self.default_max_tokens > self.cap_max_tokens:
            raise ValueError("must satisfy default_max_tokens <= cap_max_tokens")
        return self


class ModelsSettings(Section):
    """The name that applications call.  The backend's own model name is served beside it."""

    alias: str = Field(default="havengate", min_length=1, max_length=128)


class Settings(BaseSettings):
    """Everything the process is started with.  Read it with `load_settings`."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    profile: Literal["embedded", "production"] = "embedded"
    home: Path = Path(".havengate")
    """State folder: the database, its key, downloads.  Relative paths start in the working folder."""
    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    events: EventsSettings = EventsSettings()
    backend: BackendSettings = BackendSettings()
    detectors: dict[str, DetectorSettings] = Field(default={}, validate_default=True)
    judge: JudgeSettings = JudgeSettings()
    policy: PolicySettings = PolicySettings()
    holdback: HoldbackSettings = HoldbackSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    auth: AuthSettings = AuthSettings()
    persona: PersonaSettings = PersonaSettings()
    models: ModelsSettings = ModelsSettings()

    @model_validator(mode="before")
    @classmethod
    def _with_bundled_detectors(cls, given: dict[str, Any]) -> dict[str, Any]:
        """Naming one detector must not drop the others: the bundled pair stays unless it is switched off."""
        named = given.get("detectors", {})
        if not isinstance(named, dict):
            return given
        merged = {name: {"kind": name} for name in ("lexicon", "encoder")}
        for name, section in named.items():
            merged[name] = {"kind": name, **section} if isinstance(section, dict) else section
        return {**given, "detectors": merged}

    @model_validator(mode="after")
    def _somebody_listens(self) -> Settings:
        if not any(detector.enabled for detector in self.detectors.values()):
            raise ValueError("detectors: at least one must be enabled; without one nothing would be judged")
        return self

    @model_validator(mode="after")
    def _fit_for_its_profile(self) -> Settings:
        """What several gateways need to be one house.  A part that is missing is never made up."""
        if self.profile == "embedded":
            return self
        if self.store.url is None or not self.store.url.get_secret_value().startswith("postgresql"):
            raise ValueError("store.url: the production profile needs a database, postgresql://USER@HOST/NAME")
        if self.events.url is None:
            raise ValueError("events.url: the production profile needs a Redis or Valkey, redis://HOST:PORT/0")
        if self.auth.dev_api_key is not None:
            raise ValueError(
                "auth.dev_api_key: the production profile takes no development key; run 'havengate keys create'"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load_settings` gathered: no source is read behind its back."""
        return (init_settings,)

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL.  May hold a password: never log it."""
        if self.store.url is not None:
            return self.store.url.get_secret_value()
        return f"sqlite:///{self.home.expanduser().absolute() / 'havengate.sqlite3'}"

    @property
    def keyring_path(self) -> Path:
        """Where the key file is when the keys are not in the environment."""
        return self.store.keyring_path or self.home.expanduser().absolute() / "keyring.json"

    @property
    def may_make_keyring(self) -> bool:
        """Whether a missing key file is made.  Of several gateways each would make its own, and none could read
        what another sealed, or find the conversation that another knows."""
        return self.profile == "embedded"

    def shown(self) -> dict[str, Any]:
        """Every setting in force, fit to print: secrets and secret-looking options are starred out."""
        masked: dict[str, Any] = _star_out(self.model_dump(mode="json"))
        return masked

    @property
    def enabled_detectors(self) -> dict[str, DetectorSettings]:
        return {name: detector for name, detector in self.detectors.items() if detector.enabled}


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        named = bool(parts.path if parts.scheme == "unix" else parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in ("redis", "rediss", "unix")


def _star_out(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _star_out(inner, key) for key, inner in value.items()}
    hidden = value is not None and not SECRET_WORDS.isdisjoint(name.lower().split("_"))
    return STARS if hidden else value


def load_settings(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Read, merge and check everything, or raise `StartupError` with one line that names the key at fault.

    ``overrides`` is nested by section (``{"server": {"port": 9000}}``); a value of None counts as not given.
    """
    _refuse_unknown_variables(os.environ)
    given = _read_toml(config) if config is not None else {}
    for layer in (_from_short_variables(os.environ), _from_variables(), _without_none(overrides or {})):
        given = _merge(given, layer)
    try:
        return Settings(**given)
    except ValidationError as error:
        raise StartupError(_first_fault(error, config)) from None


# --- where settings come from ------------------------------------------------------------------


def _read_toml(config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise StartupError(f"The settings file {config} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise StartupError(f"The settings file {config} is not UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        where = str(error).rpartition("(at ")[2].rstrip(")") if "(at " in str(error) else "unknown place"
        raise StartupError(f"The settings file {config} is not valid TOML (at {where}).") from None


def _from_short_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, path in SHORT_NAMES.items():
        if value := environ.get(name):
            found = _merge(found, _nest(path, value))
    return found


def _from_variables() -> dict[str, Any]:
    source = EnvSettingsSource(
        Settings, env_prefix=PREFIX, env_nested_delimiter=DELIMITER, env_ignore_empty=True, case_sensitive=False
    )
    try:
        return _decode_options(source())
    except SettingsError as error:
        section = str(error).partition('field "')[2].partition('"')[0]
        raise StartupError(f"The variable {PREFIX}{section.upper()} must hold a JSON object.") from None


def _decode_options(layer: dict[str, Any]) -> dict[str, Any]:
    """Options have the types their backend or detector declares, so a variable's text is read as JSON if it is JSON."""
    return {
        key: {name: _json_or_text(text) for name, text in value.items()}
        if key == "options" and isinstance(value, dict)
        else _decode_options(value)
        if isinstance(value, dict)
        else value
        for key, value in layer.items()
    }


def _json_or_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _nest(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for key in reversed(path):
        value = {key: value}
    return dict(value)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, section by section.  Depth is bounded by what TOML and argv can nest."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _without_none(layer: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: _without_none(value) if isinstance(value, Mapping) else value for key, value in layer.items()}
    return {key: value for key, value in kept.items() if value is not None}


# --- what is wrong with them -------------------------------------------------------------------


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    """pydantic-settings ignores a variable that fits no field; a gateway must not."""
    for name in sorted(environ):
        if not name.upper().startswith(PREFIX):
            continue
        path = tuple(name[len(PREFIX) :].lower().split(DELIMITER))
        if not _is_known(Settings, path):
            raise StartupError(f"Unknown setting in the environment: {name}.{_nearest(path)}")


def _is_known(annotation: Any, path: tuple[str, ...]) -> bool:
    """Whether ``path`` leads to a setting, a whole section, or into a section with free keys (``options``)."""
    if not path:
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(path[0])
        return field is not None and _is_known(field.annotation, path[1:])
    if get_origin(annotation) is dict:
        item = get_args(annotation)[1]
        return bool(path[0]) and (item is Any or _is_known(item, path[1:]))
    return False


def _known_keys(annotation: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            key = f"{prefix}.{name}" if prefix else name
            yield key
            yield from _known_keys(field.annotation, key)


def _nearest(path: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(".".join(path), _known_keys(Settings), n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _first_fault(error: ValidationError, config: Path | None) -> str:
    """One line about the first fault: the key, what is wrong with it, and where it was set.  Never its value."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    path = tuple(str(part) for part in fault["loc"])
    key, origin = ".".join(path), _origin(path, config)
    if fault["type"] == "extra_forbidden":
        return f"Unknown setting{origin}: {key}.{_nearest(path)}"
    problem = fault["msg"].removeprefix("Value error, ").removesuffix(".")
    return f"Setting {key}{origin}: {problem}." if key else f"Settings{origin}: {problem}."


def _origin(path: tuple[str, ...], config: Path | None) -> str:
    """Where a person should look first: a variable that sets this key, else the file."""
    long_name = PREFIX + DELIMITER.join(path).upper()
    for name in (long_name, *(short for short, target in SHORT_NAMES.items() if target == path)):
        if os.environ.get(name):
            return f" (from {name})"
    return f" (from {config})" if config is not None else ""
