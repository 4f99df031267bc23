"""Credentials in texts: what looks like one, or stands in the environment as one, is taken out of all that leaves."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
"""Variables that hold the hub's token."""

REMOVED = "[token removed]"

_SECRET_NAME = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY)(?:_?\d+)?$|(?:^|_)(?:PAT|AUTH)$|"
    r"(?:^|_)(?:SECRET|PASSWORD|CREDENTIALS?|API_KEY|ACCESS_KEY)_|"
    r"(?:^|_)(?:ACCESS|SECRET|PRIVATE|SIGNING|ENCRYPTION|ACCOUNT|STORAGE|MASTER)_KEY$",
    re.IGNORECASE,
)
# What is shorter may be a word, and what is a path names a secret rather than being one.
_SHORTEST = 8

_NAMES = (
    r"secret[_-]?access[_-]?key|session[_-]?token|secret[_-]?key|client[_-]?secret|secret|passwd|password|passphrase|"
    r"api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|account[_-]?key|auth[_-]?token|access[_-]?token|"
    r"refresh[_-]?token|hub[_-]?token|hf[_-]?token|x-amz-signature|x-amz-credential|x-amz-security-token"
)
_VALUE = r"(?!\[token removed\])[^\s\"'<>,;&\\\[\]{}()|]"
_PATTERNS = [
    # Hugging Face: of users, of organizations, of applications, short-lived ones.
    re.compile(r"hf_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt|app|org|xet)_[\w.~+/=-]{8,}|api_org_[A-Za-z0-9]{20,}", re.I),
    # GitHub and GitLab, package indexes, Slack, OpenAI and Anthropic, Google, Stripe.
    re.compile(
        r"(?<![A-Za-z0-9])(?:gh[pousr]_\w{16,}|github_pat_\w{16,}|gl(?:pat|oas|cbt|dt|rt)-[\w-]{16,}|npm_[A-Za-z0-9]{30,}"
        r"|pypi-[\w-]{40,}|xox[abeoprs]-[\w-]{10,}|sk-[\w-]{20,}|AIza[\w-]{30,}|ya29\.[\w.-]{20,}|[rs]k_live_\w{16,})",
        re.I,
    ),
    # The ids of AWS's keys (IAM identifiers); JSON web tokens; private keys.
    re.compile(r"(?<![A-Za-z0-9])A(?:3T[A-Z0-9]|KIA|SIA|GPA|IDA|ROA|NPA|NVA)[A-Z0-9]{16}(?![A-Za-z0-9])", re.I),
    re.compile(r"(?<![\w-])eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.S),
]
_AFTER = [
    re.compile(rf"(bearer\s+){_VALUE}{{4,}}", re.I),
    re.compile(rf"(authorization[\"']?\s*[:=]\s*[\"']?(?:basic|token)\s+){_VALUE}+", re.I),
    re.compile(rf"((?:{_NAMES})[\"']?\s*[=:]\s*[\"']?){_VALUE}{{6,}}", re.I),
    # What stands before the host of an address: a name with a password, or a token alone.
    re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?!\[token removed\])[^\s/@:\"'<>]*:[^\s/@\"'<>]+(?=@)", re.I),
    re.compile(r"(\b[a-z][a-z0-9+.-]*://)(?!\[token removed\])[^\s/@:\"'<>]{16,}(?=@)", re.I),
]
# One of these stands in whatever one of the patterns finds.
_HINT = re.compile(rf"_|-|://|bearer|authorization|AIza|ya29|eyJ|{_NAMES}|A[3KSGIRN][TIPDOV]", re.I)


@functools.lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Return whether an environment variable of that name holds a credential, by its name."""
    return name in TOKENS or bool(_SECRET_NAME.search(name))


def _values() -> Iterator[str]:
    for name, value in os.environ.items():
        if value and (
            name in TOKENS or (is_secret(name) and len(value) >= _SHORTEST and not value.startswith(("/", "~")))
        ):
            yield value


def without_secrets(text: str, *secrets: str) -> str:
    """Return ``text`` with ``secrets``, the environment's credentials and whatever looks like one replaced.

    Those are tokens of hubs, forges, clouds and package indexes by their forms, what follows ``Bearer`` or stands under
    a name such as ``password``, and names with passwords in addresses; upper or lower case.
    """
    return _without(text, [value for value in (*secrets, *_values()) if value])


def _without(text: str, secrets: Iterable[str]) -> str:
    for value in secrets:
        text = text.replace(value, REMOVED)
    if not _HINT.search(text):
        return text
    for pattern in _PATTERNS:
        text = pattern.sub(REMOVED, text)
    for pattern in _AFTER:
        text = pattern.sub(rf"\1{REMOVED}", text)
    return text


def cleaned(value: Any) -> Any:
    """Return JSON data with :func:`without_secrets` of each of its texts; the very same where nothing is taken out."""
    # The environment is looked through once, not for each of the texts.
    return _cleaned(value, list(_values()))


def _cleaned(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        found = _without(value, secrets)
        return value if found == value else found
    if isinstance(value, dict):
        parts = {name: _cleaned(part, secrets) for name, part in value.items()}
        return parts if any(parts[name] is not value[name] for name in parts) else value
    if isinstance(value, (list, tuple)):
        if all(isinstance(part, (int, float)) for part in value):
            return value
        items = [_cleaned(part, secrets) for part in value]
        return items if any(now is not then for now, then in zip(items, value, strict=True)) else value
    return value
