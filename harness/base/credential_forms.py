"""What credentials look like in texts by themselves: tokens of hubs, forges, clouds and hosts, and private keys."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

REMOVED = "[token removed]"


def mixed(text: str) -> bool:
    """Return whether a text is drawn from letters of both cases and digits, as no word, name, size or digest is.

    Those have few places where one kind follows on another, and words within: ``kFp8Dynamic128Sym`` 5 in 17 characters,
    where a drawn one has about 7. Upper after lower case and digits beside letters count.
    """
    share = len(_PLACES.findall(text)) / len(text) if text else 0.0
    return share >= (0.36 if _WORD.search(text) else 0.25) and len(text) >= 8 and bool(_ALL.match(text))


_PLACES = re.compile(r"[a-z](?=[A-Z\d])|[A-Z](?=\d)|\d(?=[A-Za-z])")
_ALL = re.compile(r"(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])(?=\D*\d)")
_WORD = re.compile(r"[a-z]{5}")


@dataclass(frozen=True)
class Pattern:
    """A regular expression, compiled when it is first looked for: all of them take longer than Python's start."""

    text: str
    flags: re.RegexFlag = re.NOFLAG

    @functools.cached_property
    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.text, self.flags)


@dataclass(frozen=True)
class Form:
    """What a credential looks like, and what is put for it; one of ``hints`` stands in all that the pattern finds.

    Hints are in lower case: to look for words costs a hundredth of what to look for a pattern does.
    """

    pattern: Pattern
    hints: Sequence[str]
    put: str = REMOVED
    check: Callable[[str], bool] | None = None
    """What must hold of what follows the first group, where a pattern cannot say it."""

    def removed(self, text: str) -> tuple[str, int]:
        """Return a text without what the pattern finds, and how often that was found."""
        if self.check is None:
            return self.pattern.compiled.subn(self.put, text)
        times, check = 0, self.check

        def put(found: re.Match[str]) -> str:
            nonlocal times
            before = found[1] or ""
            if not check(found[0][len(before) :]):
                return found[0]
            times += 1
            return before + REMOVED

        return self.pattern.compiled.sub(put, text), times


_FORGES = ["ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "gloas-", "glcbt-", "gldt-", "glrt-"]
_FORGES += ["glptt-", "glft-", "glsoat-", "glffct-", "glimt-", "glagent-", "npm_", "pypi-", "xox", "xapp-", "sk-"]
_FORGES += ["aiza", "ya29.", "k_live_", "k_test_", "gocspx-"]
_HOSTS = ["gsk_", "xai-", "r8_", "pplx-", "nvapi-", "lsv2_", "pcsk_", "wandb_v", "tgp_v", "dapi", "hvs.", "hvb."]
_HOSTS += ["hvr.", "dop_v", "dckr_", "rubygems_", "sg.", "atatt3", "atbb", "lin_api_", "ntn_", "figd_", "sbp_"]
_HOSTS += ["shpat_", "shpca_", "shppa_", "shpss_", "pmak-", "age-secret-key-1", "ltai", "flyv1", "whsec_", "sntry"]
_HOSTS += ["glsa_", "dp.", "key-", "sq0", "phc_", "phx_", "aq.", "eaac"]


def _short(text: str) -> bool:
    changes = len(_PLACES.findall(text)) / len(text)
    return mixed(text) or changes >= 0.35 or (len(text) >= 12 and sum(it.isdigit() for it in text) >= 4)


FORMS = [
    # Hugging Face: of users, of organizations, of applications, short-lived ones.
    Form(
        Pattern(r"hf_[A-Za-z0-9]{20,}|hf_(?:oauth|jwt|app|org|xet)_[\w.~+/=-]{8,}|api_org_[A-Za-z0-9]{20,}", re.I),
        ("hf_", "api_org_"),
    ),
    # The same cut short, which no snake_case name of a library is.
    Form(
        Pattern(r"(?<![A-Za-z0-9_])()hf_[A-Za-z0-9]{8,19}(?![A-Za-z0-9_])"),
        ("hf_",),
        check=lambda it: _short(it[3:]),
    ),
    # GitHub and GitLab, package indexes, Slack, OpenAI and Anthropic, Google, Stripe.
    Form(
        Pattern(
            r"(?<![A-Za-z0-9])(?:gh[pousr]_\w{16,}|github_pat_\w{16,}|gl(?:pat|oas|cbt|dt|rt|ptt|ft|soat|ffct|imt|agent)-[\w-]{16,}(?:\.\w{2}\.\w{7,})?|npm_[A-Za-z0-9]{30,}"
            r"|pypi-[\w-]{40,}|xox[abceoprs]-[\w-]{10,}|xapp-[\w-]{10,}|sk-[\w-]{20,}|AIza[\w-]{30,}|ya29\.[\w.-]{20,}"
            r"|[rs]k_(?:live|test)_\w{16,}|GOCSPX-[\w-]{16,})",
            re.I,
        ),
        _FORGES,
    ),
    # Of hosts of models and of jobs, of clouds, registries, mail and chat.
    Form(
        Pattern(
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
    Form(
        Pattern(
            r"https://(?:hooks\.slack\.com|discord(?:app)?\.com/api|[\w.-]+\.webhook\.office\.com)/[^\s\"'<>]{20,}",
            re.I,
        ),
        ("hooks.slack.com/", "discord", ".webhook.office.com/"),
    ),
    # The ids of AWS's keys (IAM identifiers); JSON web tokens; private keys.
    Form(
        Pattern(r"(?<![A-Za-z0-9])A(?:3T[A-Z0-9]|KIA|SIA|GPA|IDA|ROA|NPA|NVA)[A-Z0-9]{16}(?![A-Za-z0-9])", re.I),
        ("a3t", "akia", "asia", "agpa", "aida", "aroa", "anpa", "anva"),
    ),
    # Telegram's bots, Google's refresh tokens, Twilio's keys.
    Form(
        Pattern(r"(?<!\d)\d{8,10}:AA[\w-]{33,}|(?<!\d)1//0[\w-]{30,}|(?<![A-Za-z0-9])SK[0-9a-f]{32}(?![A-Za-z0-9])"),
        (":aa", "1//0", "sk"),
    ),
    Form(Pattern(r"(?<![\w-])eyJ[\w-]{7,}\.[\w-]{8,}\.[\w-]*", re.I), ("eyj",)),
    Form(Pattern(r"(private-(?:lines|mac):\s*)[A-Za-z0-9+/=\s]{16,}", re.I), ("private-",), rf"\1{REMOVED}"),
    Form(
        Pattern(
            r"-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z ]*PRIVATE KEY(?: BLOCK)?-----|\Z)", re.S
        ),
        ("private key",),
    ),
]
# The rest of a private key whose beginning a log's tail does not have; read backwards from its last line.
KEYS_END = re.compile(r"-----(?:KCOLB )?YEK ETAVIRP[A-Z ]{0,20} DNE-----(?:(?:\s|[nr]\\){1,9}[A-Za-z0-9+/=]{8,200})*")
