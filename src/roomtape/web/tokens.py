"""Tokens of the host application: who signed them, for whom, until when. Anything else is nobody."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import structlog
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, KeySet, OctKey, OKPKey, RSAKey

from roomtape.core.access import Role, Standing, Subject
from roomtape.core.errors import NotSignedIn, Refused, Unavailable
from roomtape.core.keys import DEFAULT_TENANT
from roomtape.settings import Settings
from roomtape.web.route import storable

log = structlog.get_logger()

Key = OctKey | RSAKey | ECKey | OKPKey
_LEEWAY_S = 30
_KEYS_FOR_S = 300.0
_KEYS_AGAIN_S = 10.0  # an unknown kid asks for the keys anew, at most so often
_LONGEST = 8192
_LONGEST_NAME = 200
_BY_TYPE: Mapping[type, list[str]] = {OctKey: ["HS256"], RSAKey: ["RS256"], ECKey: ["ES256"], OKPKey: ["Ed25519", "EdDSA"]}
_PUBLIC = ["RS256", "ES256", "Ed25519", "EdDSA"]


class TokenJudge:
    """Checks tokens against ROOMTAPE_JWT_KEY or the keys at ROOMTAPE_JWT_JWKS_URL.

    The algorithm follows from the kind of key, never from the token: a public key is no HMAC secret, `none` is nothing.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._key: Key | None = None
        self._set: KeySet | None = None
        self._fetched = -_KEYS_FOR_S
        self._fetching = asyncio.Lock()
        if settings.jwt_key is not None:
            self._key = _imported(settings.jwt_key.get_secret_value())

    @property
    def configured(self) -> bool:
        return self._key is not None or self._settings.jwt_jwks_url is not None

    async def subject(self, token: str) -> Subject:
        """Who the token says is asking; NotSignedIn for every token that is not wholly right."""
        if not self.configured:
            raise NotSignedIn("This installation takes no tokens of host applications: set ROOMTAPE_JWT_KEY or ROOMTAPE_JWT_JWKS_URL.", code="bad_token")
        if len(token) > _LONGEST:
            raise NotSignedIn
        try:
            claims = await self._claims(token)
        except (JoseError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as wrong:
            log.info("token.refused", why=type(wrong).__name__)
            raise NotSignedIn("The token is not valid: check its signature, audience, issuer and expiry.", code="bad_token") from None
        return _subject(claims)

    async def _claims(self, token: str) -> Mapping[str, Any]:
        if self._key is not None:
            found = jwt.decode(token, self._key, algorithms=_BY_TYPE[type(self._key)])
        else:
            try:
                found = jwt.decode(token, await self._keys(_KEYS_FOR_S), algorithms=_PUBLIC)
            except (JoseError, ValueError):
                found = jwt.decode(token, await self._keys(_KEYS_AGAIN_S), algorithms=_PUBLIC)  # the signer may have rotated its keys
        if found.header.get("typ", "JWT") not in {"JWT", "at+jwt", "jwt"} or "crit" in found.header:
            raise ValueError("typ")
        options: dict[str, Any] = {
            "exp": {"essential": True},
            "sub": {"essential": True, "allow_blank": False},
            "aud": {"essential": True, "value": self._settings.jwt_audience},
        }
        if self._settings.jwt_issuer:
            options["iss"] = {"essential": True, "value": self._settings.jwt_issuer}
        jwt.JWTClaimsRegistry(leeway=_LEEWAY_S, **options).validate(found.claims)
        return found.claims

    async def _keys(self, young_s: float) -> KeySet:
        async with self._fetching:
            if self._set is not None and time.monotonic() - self._fetched < young_s:
                return self._set
            url = self._settings.jwt_jwks_url
            assert url is not None
            try:
                async with httpx2.AsyncClient(timeout=5, trust_env=False, follow_redirects=False) as client:
                    answer = (await client.get(url)).raise_for_status()
                self._set = KeySet.import_key_set(answer.json())
            except (httpx2.HTTPError, ValueError, JoseError) as wrong:
                if self._set is None:
                    raise Unavailable("The keys of the host application cannot be fetched (ROOMTAPE_JWT_JWKS_URL).", code="jwks_unavailable") from wrong
                log.warning("jwks.stale", why=type(wrong).__name__)
            self._fetched = time.monotonic()
            return self._set


def _imported(text: str) -> Key:
    if "-----BEGIN" not in text:
        return OctKey.import_key(text)
    kinds: tuple[type[RSAKey | ECKey | OKPKey], ...] = (RSAKey, ECKey, OKPKey)
    for kind in kinds:
        try:
            return kind.import_key(text)
        except (ValueError, TypeError, JoseError):
            continue
    raise Refused("ROOMTAPE_JWT_KEY is no PEM key of RSA, P-256 or Ed25519.", code="bad_settings")


def _subject(claims: Mapping[str, Any]) -> Subject:
    user, tenant = claims["sub"], claims.get("tenant", DEFAULT_TENANT)
    for name in (user, tenant):
        if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME or not storable(name):
            raise NotSignedIn
    roles, stated = claims.get("roles", []), claims.get("meetings", {})
    meetings = {}
    if isinstance(stated, dict):
        meetings = {key: Role(value) for key, value in stated.items() if isinstance(value, str) and value in Role.__members__ and storable(key)}
    standing = Standing.ADMIN if isinstance(roles, list) and "admin" in roles else Standing.USER
    return Subject(standing, user, tenant, name=str(claims.get("name", ""))[:200], meetings=meetings, by_token=True)
