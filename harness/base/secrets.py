"""Credentials in texts: what looks like one, or stands in the environment as one, is taken out of all that leaves."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_HUB_TOKEN")
"""Variables that hold the hub's token."""

REMOVED = "[token removed]"

_SECRET_NAME = re.compile(
    r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY)(?:_?\d+)?$|(?:^|_)(?:PAT|AUTH|PASS|JWT|DSN)$|"
    r"_(?:PWD|COOKIE|CONNECTION_STRING|WEBHOOK(?:_URL)?)$|(?<!CACHE)(?<!SORT)(?<!PUBLIC)_KEY$|"
    r"(?:^|_)(?:SECRET|PASSWORD|CREDENTIALS?|API_KEY|ACCESS_KEY)_|"
    r"(?:^|_)(?:ACCESS|SECRET|PRIVATE|SIGNING|ENCRYPTION|ACCOUNT|STORAGE|MASTER)_KEY$",
    re.IGNORECASE,
)
# What is shorter may be a word, and what is a path names a secret rather than being one.
_SHORTEST = 8
# Texts up to so many characters are remembered with what became of them.
_SHORT = 256

_NAMES = (
    r"secret[_-]?access[_-]?key|session[_-]?token|secret[_-]?key|client[_-]?secret|secret|passwd|password|passphrase|"
    r"api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|account[_-]?key|auth[_-]?token|access[_-]?token|"
    r"refresh[_-]?token|hub[_-]?token|hf[_-]?token|x-amz-signature|x-amz-credential|x-amz-security-token|"
    r"(?:encryption|signing|master|license|subscription|shared[_-]?access)[_-]?key|_pass|[_;]pwd|set-cookie|[?&](?:amp;)?sig|"
    r"client[_-]?key[_-]?data"
)
_VALUE = r"(?!\[token removed\])[^\s\"'<>,;&\\\[\]{}()|]"
# A quotation mark, as it is, within a text that is quoted itself, or in a page.
_MARK = r"(?:\\{0,8}[\"']|&quot;|&#(?:x27|34|39);)?"
# What has a digit and a letter, and so is no word.
_MIXED = rf"(?=[\w.+/=~-]{{0,99}}\d)(?=[\w.+/=~-]{{0,99}}[A-Za-z]){_VALUE}{{16,}}"
_KEYS = ("api", "access", "private", "account", "client", "encryption", "signing", "master", "license", "subscription")
_TOKENS = ("session", "auth", "access", "refresh", "hub", "hf")
_MARKS = ("", "_", "-")
_OF_NAMES = ["secret", "passwd", "password", "passphrase", "_pass", "_pwd", ";pwd", "x-amz-", "set-cookie"]
_OF_NAMES += ["?sig", "&sig", "?amp;sig", "&amp;sig", *(f"{it}{mark}key" for it in _KEYS for mark in _MARKS)]
_OF_NAMES += [f"{it}{mark}token" for it in _TOKENS for mark in _MARKS]


@dataclass(frozen=True)
class _Form:
    """What a credential looks like, and what is put for it; one of ``hints`` stands in all that the pattern finds.

    Hints are in lower case: to look for words costs a hundredth of what to look for a pattern does.
    """

    pattern: re.Pattern[str]
    hints: Sequence[str]
    put: str = REMOVED


_FORGES = ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gloas-", "glcbt-", "gldt-", "glrt-"]
_FORGES += ["glptt-", "glft-", "glsoat-", "glffct-", "glimt-", "glagent-", "npm_", "pypi-", "xox", "xapp-", "sk-"]
_FORGES += ["aiza", "ya29.", "k_live_", "k_test_", "gocspx-"]
_HOSTS = ["gsk_", "xai-", "r8_", "pplx-", "nvapi-", "lsv2_", "pcsk_", "wandb_v", "tgp_v", "dapi", "hvs.", "hvb."]
_HOSTS += ["hvr.", "dop_v", "dckr_", "rubygems_", "sg.", "atatt3", "atbb", "lin_api_", "ntn_", "figd_", "sbp_"]
_HOSTS += ["shpat_", "shpca_", "shppa_", "shpss_", "pmak-", "age-secret-key-1", "ltai", "flyv1", "whsec_", "sntry"]
_HOSTS += ["glsa_", "dp.", "key-", "sq0", "phc_", "phx_", "aq.", "eaac"]
_FORMS = [
    # Hugging Face: of users, of organizations, of applications, short-lived ones.
    _Form(
        re.compile(r"hf_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt|app|org|xet)_[\w.~+/=-]{8,}|api_org_[A-Za-z0-9]{20,}", re.I),
        ("hf_", "api_org_"),
    ),
    # GitHub and GitLab, package indexes, Slack, OpenAI and Anthropic, Google, Stripe.
    _Form(
        re.compile(
            r"(?<![A-Za-z0-9])(?:gh[pousr]_\w{16,}|github_pat_\w{16,}|gl(?:pat|oas|cbt|dt|rt|ptt|ft|soat|ffct|imt|agent)-[\w-]{16,}(?:\.\w{2}\.\w{7,})?|npm_[A-Za-z0-9]{30,}"
            r"|pypi-[\w-]{40,}|xox[abceoprs]-[\w-]{10,}|xapp-[\w-]{10,}|sk-[\w-]{20,}|AIza[\w-]{30,}|ya29\.[\w.-]{20,}"
            r"|[rs]k_(?:live|test)_\w{16,}|GOCSPX-[\w-]{16,})",
            re.I,
        ),
        _FORGES,
    ),
    # Of hosts of models and of jobs, of clouds, registries, mail and chat.
    _Form(
        re.compile(
            r"(?<![A-Za-z0-9])(?:gsk_\w{20,}|xai-\w{20,}|r8_\w{20,}|pplx-\w{20,}|nvapi-[\w-]{20,}|lsv2_\w{20,}|pcsk_\w{20,}"
            r"|wandb_v\d_\w{20,}|tgp_v\d_[\w-]{20,}|dapi[0-9a-f]{32}(?:-\d+)?|hv[sbr]\.[\w-]{20,}|dop_v\d_\w{20,}"
            r"|dckr_(?:pat|oat)_[\w-]{16,}|rubygems_\w{20,}|SG\.[\w-]{16,}\.[\w-]{16,}|ATATT3[\w=-]{20,}|ATBB\w{20,}"
            r"|lin_api_\w{20,}|ntn_\w{20,}|figd_[\w-]{20,}|sbp_\w{20,}|shp(?:at|ca|pa|ss)_\w{20,}|PMAK-[\w-]{20,}"
            r"|AGE-SECRET-KEY-1\w{20,}|LTAI\w{16,}|FlyV1\s+\S{20,}|whsec_\w{20,}|sntry[su]_[\w=+/-]{20,}|glsa_\w{20,}"
            r"|dp\.(?:pt|st|ct|sa|scim|audit)\.[\w.]{20,}|key-[0-9a-f]{32}|sq0[a-z]{3}-[\w-]{20,}|ph[cx]_\w{30,}"
            r"|AQ\.[\w-]{30,}|EAAC\w{20,})",
            re.I,
        ),
        _HOSTS,
    ),
    _Form(
        re.compile(
            r"https://(?:hooks\.slack\.com|discord(?:app)?\.com/api|[\w.-]+\.webhook\.office\.com)/[^\s\"'<>]{20,}",
            re.I,
        ),
        ("hooks.slack.com/", "discord", ".webhook.office.com/"),
    ),
    # The ids of AWS's keys (IAM identifiers); JSON web tokens; private keys.
    _Form(
        re.compile(r"(?<![A-Za-z0-9])A(?:3T[A-Z0-9]|KIA|SIA|GPA|IDA|ROA|NPA|NVA)[A-Z0-9]{16}(?![A-Za-z0-9])", re.I),
        ("a3t", "akia", "asia", "agpa", "aida", "aroa", "anpa", "anva"),
    ),
    # Telegram's bots, Google's refresh tokens, Twilio's keys.
    _Form(
        re.compile(r"(?<!\d)\d{8,10}:AA[\w-]{33,}|(?<!\d)1//0[\w-]{30,}|(?<![A-Za-z0-9])SK[0-9a-f]{32}(?![A-Za-z0-9])"),
        (":aa", "1//0", "sk"),
    ),
    _Form(re.compile(r"(?<![\w-])eyJ[\w-]{7,}\.[\w-]{8,}\.[\w-]*", re.I), ("eyj",)),
    _Form(
        re.compile(
            r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)", re.S
        ),
        ("private key",),
    ),
]
# The rest of a private key whose beginning a log's tail does not have; read backwards from its last line.
_KEYS_END = re.compile(r"-----(?:KCOLB )?YEK ETAVIRP[A-Z ]{0,20} DNE-----(?:(?:\s|[nr]\\){1,9}[A-Za-z0-9+/=]{8,200})*")
_PUT = rf"\1{REMOVED}"
_AFTER = [
    _Form(re.compile(rf"(bearer\s+){_VALUE}{{4,}}", re.I), ("bearer",), _PUT),
    _Form(
        re.compile(
            rf"(authorization{_MARK}\s*[:=]\s*{_MARK}(?:basic|bearer|token|api-?key|key|negotiate|ntlm|sso-key|splunk)"
            rf"(?:\s|%20|\+)+){_VALUE}+",
            re.I,
        ),
        ("authorization",),
        _PUT,
    ),
    # Of several parts, of which any may be the secret one.
    _Form(
        re.compile(
            r"(authorization[\"']?\s*[:=]\s*[\"']?(?:digest|oauth|signature|hmac|aws4-hmac-sha256)\s+)"
            r"(?!\[token removed\])[^\r\n]+",
            re.I,
        ),
        ("authorization",),
        _PUT,
    ),
    _Form(re.compile(rf"(authorization{_MARK}\s*[:=]\s*{_MARK}){_MIXED}", re.I), ("authorization",), _PUT),
    _Form(re.compile(rf"(\bsshpass\s+-p\s*[\"']?){_VALUE}+", re.I), ("sshpass",), _PUT),
    # Of a command line, of .netrc and of Docker's settings; a token under its bare name, which tokenizers have as well.
    _Form(re.compile(rf"((?:^|\s)--(?:{_NAMES}|token)\s+){_VALUE}{{6,}}", re.I), ("--",), _PUT),
    _Form(re.compile(rf"(\blogin\s+\S+\s+password\s+){_VALUE}+", re.I), ("login",), _PUT),
    _Form(
        re.compile(rf"((?:^|\s)(?:-u\s+|--(?:proxy-)?user[\s=]+)[\"']?[A-Za-z][\w.@-]*:){_VALUE}{{6,}}", re.I),
        ("-u",),
        _PUT,
    ),
    # As each of these programs takes them, in one word with the option or the next one.
    *(
        _Form(re.compile(rf"(\b(?:{programs})\b[^\r\n|;]{{0,300}}?\s{option}\s*[\"']?){_VALUE}{{4,}}"), hints, _PUT)
        for programs, option, hints in (
            (
                r"curl|https?|xh",
                r"(?:-[A-Za-z#]{0,6}[uUa]|--auth)[\s=]*[\"']?[A-Za-z][\w.@%+-]*:",
                ("curl", "http", "xh"),
            ),
            (r"(?:mysql|mariadb)[\w-]*", r"-p(?=\S)", ("mysql", "mariadb")),
            (
                r"(?:docker|podman|nerdctl|helm|skopeo|crane|oc|az) [\w -]*login|twine|mongo\w*",
                r"-p",
                ("login", "twine", "mongo"),
            ),
            (r"redis-cli", r"-a", ("redis-cli",)),
            (r"ldap\w+", r"-w", ("ldap",)),
            (r"smbclient|rpcclient", r"(?:-U|--user)[\s=]*[^\s%]+%", ("smbclient", "rpcclient")),
            (r"openssl", r"-pass(?:in|out)?\s+pass:", ("openssl",)),
        )
    ),
    _Form(
        re.compile(
            r"((?:secret[_-]?access[_-]?key|client[_-]?secret|api[_-]?key|access[_-]?token|auth[_-]?token|passw(?:or)?d)"
            rf"\s+){_MIXED}",
            re.I,
        ),
        _OF_NAMES,
        _PUT,
    ),
    _Form(re.compile(rf"([?&](?:amp;)?key=){_MIXED}", re.I), ("key=",), _PUT),
    _Form(re.compile(rf"(\"_?auth\"\s*:\s*\"|\b_auth\s*=\s*){_VALUE}{{8,}}", re.I), ("auth",), _PUT),
    _Form(re.compile(rf"(\bcookie[\"']?\s*:\s*[\"']?(?:[\w.-]+=)?+){_VALUE}{{6,}}", re.I), ("cookie",), _PUT),
    _Form(
        re.compile(
            rf"((?:(?:(?<![A-Za-z])|(?<=[_-]))token|\bapi key(?: provided)?){_MARK}\s*[=:]\s*{_MARK}){_MIXED}", re.I
        ),
        ("token", "api key"),
        _PUT,
    ),
    # In quotation marks to the closing one, whatever stands between.
    *(
        _Form(
            re.compile(
                rf"((?:{_NAMES})[\"']?\s*[=:]\s*{mark})(?!\[token removed\])[^{mark}\r\n\\]{{6,200}}(?={mark})", re.I
            ),
            _OF_NAMES,
            _PUT,
        )
        for mark in "\"'"
    ),
    _Form(re.compile(rf"((?:{_NAMES}){_MARK}\s*[=:]\s*{_MARK}){_VALUE}{{6,}}", re.I), _OF_NAMES, _PUT),
    # What stands before the host of an address: a name with a password, or a token alone.
    _Form(
        re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://)(?!\[token removed\]@)[^\s/@:\"'<>]*:[^\s/\"'<>]+(?=@)", re.I),
        ("://",),
        _PUT,
    ),
    _Form(
        re.compile(r"(\b[a-z][a-z0-9+.-]{0,30}://)(?!\[token removed\])[^\s/@:\"'<>]{16,}(?=@)", re.I), ("://",), _PUT
    ),
    # The same, percent-encoded in part or as a whole.
    _Form(
        re.compile(
            r"(\b[a-z][a-z0-9+.-]{0,30}://)(?!\[token removed\])[^\s/@:%\"'<>]{0,99}%3A[^\s/@:\"'<>]{1,200}(?=@)", re.I
        ),
        ("%3a",),
        _PUT,
    ),
    _Form(
        re.compile(
            r"(\b[a-z][a-z0-9+.-]{0,30}%3A%2F%2F)(?!\[token removed\])"
            r"[^\s/@:%\"'<>&]{0,99}%3A(?:(?!%2F)[^\s/@:\"'<>&]){1,200}(?=%40)",
            re.I,
        ),
        ("%3a%2f%2f",),
        _PUT,
    ),
]
# What a pattern that heeds no case takes for a letter, and no change of case makes one.
_LIKE = (("\u0130", "i"), ("\u0131", "i"), ("\u017f", "s"), ("\u212a", "k"))


@functools.lru_cache(maxsize=4096)
def is_secret(name: str) -> bool:
    """Return whether an environment variable of that name holds a credential, by its name."""
    return name in TOKENS or bool(_SECRET_NAME.search(name))


def _values() -> Iterator[str]:
    # Of most variables the name is enough, and no value is read.
    for name in filter(is_secret, os.environ):
        value = os.environ.get(name)
        if value and (name in TOKENS or (len(value) >= _SHORTEST and not value.startswith(("/", "~")))):
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
    return _remembered(text) if len(text) <= _SHORT else _by_form(text)


def _by_form(text: str) -> str:
    text = _taken_out(text, _FORMS)
    if "-----END " in text:
        text = _KEYS_END.sub(REMOVED[::-1], text[::-1])[::-1]
    return _taken_out(text, _AFTER)


# Of records, names and units nearly all texts come again and again.
_remembered = functools.lru_cache(maxsize=8192)(_by_form)


def _taken_out(text: str, forms: Iterable[_Form]) -> str:
    lower = _lower(text)
    for form in forms:
        if any(hint in lower for hint in form.hints):
            text, times = form.pattern.subn(form.put, text)
            if times:
                lower = _lower(text)
    return text


def _lower(text: str) -> str:
    """Return a text in lower case, with what a pattern takes for an i, k or s that heeds no case as that letter."""
    if not text.isascii():
        for letter, plain in _LIKE:
            text = text.replace(letter, plain)
    return text.lower()


def cleaned(value: Any) -> Any:
    """Return JSON data with :func:`without_secrets` of each of its texts; the very same where nothing is taken out."""
    # The environment is looked through once, not for each of the texts.
    return _cleaned(value, list(_values()))


def _cleaned(value: Any, secrets: list[str]) -> Any:
    if isinstance(value, str):
        found = _without(value, secrets)
        return value if found == value else found
    if isinstance(value, dict):
        parts = {_cleaned(name, secrets): _cleaned(part, secrets) for name, part in value.items()}
        same = parts.keys() == value.keys() and all(parts[name] is value[name] for name in parts)
        return value if same else parts
    if isinstance(value, (list, tuple)):
        if all(isinstance(part, (int, float)) for part in value):
            return value
        items = [_cleaned(part, secrets) for part in value]
        return items if any(now is not then for now, then in zip(items, value, strict=True)) else value
    return value
