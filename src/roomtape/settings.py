"""Every setting, once: ROOMTAPE_* from the environment, checked at start with a sentence each."""

import re
import shutil
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Self

from pydantic import AliasChoices, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from roomtape.core.errors import Refused
from roomtape.core.model import Source

_WEAK = frozenset({"secret", "changeme", "change-me", "password", "devkey", "roomtape", "please-change-me"})
_KEY_FLOOR = 32  # bytes: what HS256 needs (RFC 7518, 3.2)


_ELSEWHERE = frozenset(  # read by tests and benchmarks, or by the capture of other sources
    {"BENCH_FFMPEG", "CHROMIUM", "REQUIRE_SERVERS", "RTP_IP", "RTP_PORTS", "SEED", "VERSITYGW"}
)


class Settings(BaseSettings):
    """What an operator may say. A missing database or storage URL means: inside the data folder."""

    model_config = SettingsConfigDict(env_prefix="ROOMTAPE_", env_ignore_empty=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=8470, ge=0, le=65535)
    data: Path = Path("roomtape-data")
    url: str | None = Field(default=None, description="where people reach it, where a proxy stands in front")
    database_url: SecretStr | None = None
    storage_url: str | None = None
    aws_access_key_id: str = Field(default="", validation_alias="AWS_ACCESS_KEY_ID")
    aws_secret_access_key: SecretStr = Field(default=SecretStr(""), validation_alias="AWS_SECRET_ACCESS_KEY")
    aws_session_token: SecretStr = Field(default=SecretStr(""), validation_alias="AWS_SESSION_TOKEN")
    aws_endpoint_url: str = Field(default="", validation_alias="AWS_ENDPOINT_URL")
    aws_region: str = Field(default="", validation_alias=AliasChoices("AWS_REGION", "AWS_DEFAULT_REGION"))
    source: Source = Source.SEGMENTS

    jwt_key: SecretStr | None = None
    jwt_jwks_url: str | None = None
    jwt_issuer: str | None = None
    jwt_audience: str | None = None

    max_segment_bytes: int = Field(default=1 << 30, ge=1)
    reserve_bytes: int = Field(default=1 << 30, ge=0, description="uploads are refused (507) below this much free disk")
    trash_days: int = Field(default=7, ge=0)
    live_wait_s: float = Field(default=10.0, ge=0, description="how long the live edge waits for a missing segment")
    heartbeat_s: float = Field(default=10.0, gt=0, description="a worker that is silent for three of these is dead")
    ffmpeg: str | None = None
    allow_unsandboxed: bool = False

    @model_validator(mode="after")
    def _keys_are_strong(self) -> Self:
        key = self.jwt_key.get_secret_value() if self.jwt_key else None
        if key is not None and "-----BEGIN" not in key and (len(key.encode()) < _KEY_FLOOR or key.lower() in _WEAK):
            raise ValueError(f"ROOMTAPE_JWT_KEY is too weak: use at least {_KEY_FLOOR} random bytes, e.g. the output of `openssl rand -hex 32`")
        if (self.jwt_key or self.jwt_jwks_url) and not self.jwt_audience:
            raise ValueError("ROOMTAPE_JWT_AUDIENCE is missing: tokens are taken only when they name this installation as their audience")
        return self

    @field_validator("url")
    @classmethod
    def _url_is_an_origin(cls, said: str | None) -> str | None:
        if said and not re.fullmatch(r"https?://[^/?#\s]+/?", said):
            raise ValueError("it must be an address like https://rec.example.org, without a path")
        return said.rstrip("/") if said else None

    @field_validator("ffmpeg")
    @classmethod
    def _ffmpeg_is_there(cls, named: str | None) -> str | None:
        if named and shutil.which(named) is None:
            raise ValueError(f"there is no program {named}: name an ffmpeg, or leave the setting out to use the one that comes with Roomtape")
        return named or None

    @property
    def spool(self) -> Path:
        """Where bodies wait while they are taken, and while the store fails."""
        return self.data / "spool"


def load(**overrides: object) -> Settings:
    """Settings of the environment, with what the command line says on top; Refused with one sentence per mistake."""
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as wrong:
        raise Refused(" ".join(_sentence(error) for error in wrong.errors()), code="bad_settings") from None  # the chain would print the value


def unknown(names: Iterable[str]) -> dict[str, str]:
    """Which of these variables look like settings and are none, each with a sentence."""
    known = {name.upper() for name, field in Settings.model_fields.items() if field.validation_alias is None}
    found = {}
    for name in sorted(names):
        prefix, _, rest = name.upper().partition("_")
        if prefix == "ROOMTAPE" and rest not in known | _ELSEWHERE:
            near = get_close_matches(rest, known, 1)
            found[name] = f"{name} is no setting and does nothing{f': did you mean ROOMTAPE_{near[0]}?' if near else '.'}"
    return found


def _sentence(error: object) -> str:
    place = ".".join(str(part) for part in error["loc"]) if isinstance(error, dict) else ""
    message = str(error["msg"]) if isinstance(error, dict) else str(error)
    message = message.removeprefix("Value error, ")
    return f"ROOMTAPE_{place.upper()}: {message}." if place else f"{message}."
