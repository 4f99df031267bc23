"""What stands before credentials in texts: names, options of programs, headers, and the hosts of addresses."""

from __future__ import annotations

import re

from harness.base.credential_forms import REMOVED, Form, Pattern, mixed

_NAMES = (
    r"secret[_-]?access[_-]?key|session[_-]?token|secret[_ -]?key|client[_-]?secret|secret|passwd|password|passphrase|"
    r"passwort|passcode|api[_-]?key|access[_-]?key(?:[_-]?id)?|private[_-]?key|account[_-]?key|auth[_-]?token|access[_-]?token|"
    r"refresh[_-]?token|hub[_-]?token|hf[_-]?token|x-amz-signature|x-amz-credential|x-amz-security-token|"
    r"(?:encryption|signing|master|license|subscription|functions|shared[_-]?access|pre[_-]?shared)[_-]?key|_pass|[_;]pwd|set-cookie|"
    r"[?&](?:amp;)?sig|client[_-]?key[_-]?data|client[_-]?assertion"
)
_VALUE = r"(?!\[token removed\])[^\s\"'<>,;&\\\[\]{}()|]"
# A quotation mark, as it is, within a text that is quoted itself, or in a page; the letter of Python's bytes before it.
_MARK = r"(?:b?\\{0,8}[\"']|&quot;|&#(?:x27|34|39);)?"
# After a name: the end of its quotation or of its subscript, what assigns, and the beginning of the value or of a list.
_IS = rf"{_MARK}\]?\s*[=:]\s*\[?\s*{_MARK}"
# What has a digit and a letter, and so is no word.
_DIGIT_AND_LETTER = r"(?=[\w.+/=~-]{0,99}\d)(?=[\w.+/=~-]{0,99}[A-Za-z])"
_MIXED = rf"{_DIGIT_AND_LETTER}{_VALUE}{{16,}}"
# What is called, or is a shell's variable, is no value.
_CALL = r"(?![\w.]+\(|\$[A-Z_{(])"
_DRAWN = rf"{_CALL}{_VALUE}{{8,}}"
_KEYS = ["api", "access", "private", "account", "client", "encryption", "signing", "master", "license", "subscription"]
_KEYS += ["secret", "functions", "shared"]
_TOKENS = ("session", "auth", "access", "refresh", "hub", "hf")
_MARKS = ("", "_", "-")
_OF_NAMES = ["secret", "passwd", "password", "passphrase", "passwort", "passcode", "_pass", "_pwd", ";pwd", "x-amz-"]
_OF_NAMES += ["set-cookie", "client_assertion", "client-assertion", "clientassertion"]
_OF_NAMES += ["?sig", "&sig", "?amp;sig", "&amp;sig", *(f"{it}{mark}key" for it in _KEYS for mark in _MARKS)]
_OF_NAMES += [f"{it}{mark}token" for it in _TOKENS for mark in _MARKS]
_PUT = rf"\1{REMOVED}"

# Ends of names of the environment, in capitals, whose value may be any word but what says that there is none.
_ENDS = [
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "CREDENTIAL",
    "CREDENTIALS",
    "API_KEY",
    "APIKEY",
    "PGPASS",
    "SSHPASS",
]
_ENDS += ["_COOKIE", "_CONNECTION_STRING"]
_WHOLE_WORDS = ("PAT", "AUTH", "PASS", "JWT", "DSN", "PWD")
_NO_VALUE = (
    r"(?!(?i:unset|missing|none|null|nil|empty|false|true|hidden|redacted|removed|not[ _-]?set|not)\b|[$%*/~.-]|"
    r"[\w.]+\()"
)

_COMMON = [
    "token",
    "pass",
    "pwd",
    "auth",
    "jwt",
    "psk",
    "sig",
    "cred",
    "creds",
    "credential",
    "credentials",
    "key",
    "code",
]
_COMMON += [
    "signature",
    "phpsessid",
    "jsessionid",
    "sessionid",
    "session_id",
    "csrftoken",
    "csrf_token",
    "pat",
    "dsn",
]


def _common() -> str:
    # Each as a literal at the beginning of the pattern, by which far fewer places are looked at.
    cases = (form for name in _COMMON for form in (name, name.capitalize(), name.upper()))
    return "|".join(rf"{it}(?<![A-Za-z]{it})" for it in cases)


def _capitals() -> str:
    ends = [rf"{it}(?<![a-z]{it})" for it in _ENDS] + [rf"{it}(?<![A-Za-z]{it})" for it in _WHOLE_WORDS]
    # A tokenizer's are no credentials.
    of_texts = "".join(f"(?<!{it}_TOKEN)" for it in ("EOS", "BOS", "PAD", "UNK", "SEP", "CLS", "MASK"))
    return "|".join([*ends, rf"TOKEN(?<![a-z]TOKEN){of_texts}"])


# How programs take a password: the programs, the option before it, and what tells of them.
_PROGRAMS = (
    (
        r"curl|https?|xh",
        r"(?:-[A-Za-z#]{0,6}[uUa]|--auth)[\s=]*[\"']?[A-Za-z][\w.@%+-]*:",
        ("curl", "http", "xh"),
    ),
    (r"curl", r"(?:--(?:proxy-)?pass|(?:-E|--(?:proxy-)?cert)[\s=]*[^\s:]+:)[\s=]*", ("curl",)),
    (r"curl", r"(?:-b|--cookie)[\s=]*[\"']?[\w.-]+=", ("curl",)),
    (r"(?:mysql|mariadb)[\w-]*", r"-p(?=\S)", ("mysql", "mariadb")),
    (
        r"(?:docker|podman|nerdctl|helm|skopeo|crane|oc|az) [\w -]*login|twine|mongo\w*|ncftp\w*|rdesktop|psexec\w*",
        r"-p",
        ("login", "twine", "mongo", "ncftp", "rdesktop", "psexec"),
    ),
    (r"7z\w*|rar|unrar|sshpass", r"-p(?=\S)", ("7z", "rar", "sshpass")),
    (
        r"sqlcmd|bcp|ipmitool|mosquitto_\w+|unzip|zip",
        r"-P",
        ("sqlcmd", "bcp", "ipmitool", "mosquitto_", "zip"),
    ),
    (r"plink|pscp|psftp|putty", r"-pw", ("plink", "pscp", "psftp", "putty")),
    (r"redis-cli", r"(?:-a|--pass)", ("redis-cli",)),
    (r"ldap\w+", r"-w", ("ldap",)),
    (r"smbclient|rpcclient", r"(?:-U|--user)[\s=]*[^\s%]+%", ("smbclient", "rpcclient")),
    (r"openssl", r"-(?:pass(?:in|out|word)?|twopass)[\s=]+[\"']?pass:", ("openssl",)),
    (r"openssl", r"-[kK](?=\s)", ("openssl",)),
    *((r"snmp\w+", f"-{it}", ("snmp",)) for it in "AXc"),
    (r"adb", r"shell\s+input\s+text", ("adb",)),
    (r"keytool|jarsigner", r"-(?:store|key|new|srcstore|deststore)pass(?:wd)?", ("keytool", "jarsigner")),
    (
        r"xfreerdp|wfreerdp|cmdkey|schtasks|winscp|wmic",
        r"/(?:p|pass|password|rp)[:=\s]",
        (
            "freerdp",
            "cmdkey",
            "schtasks",
            "winscp",
            "wmic",
        ),
    ),
    (r"lftp|ftp", r"-u\s+[\w.@-]+,", ("ftp",)),
    (r"sqlplus|rman|expdp|impdp", r"[\"']?[A-Za-z]\w*/", ("sqlplus", "rman", "expdp", "impdp")),
    (r"htpasswd", r"-(?:[a-zA-Z]*n[a-zA-Z]*b\w*|[a-zA-Z]*b\w*\s+[^\s\[]+)\s+[^\s\[]+", ("htpasswd",)),
    (r"rabbitmqctl", r"(?:add_user|change_password)\s+[^\s\[]+", ("rabbitmqctl",)),
    (r"wpa_passphrase", r"[^\s\[]+", ("wpa_passphrase",)),
    (r"vault|wandb", r"login(?:\s+--relogin|\s+-method=\w+)*(?:\s+token=)?", ("vault", "wandb")),
    (r"gh auth", r"(?:login\s+)?--with-token", ("with-token",)),
    (r"setx", r"\w*(?:TOKEN|KEY|SECRET|PASSWORD|PASS|PWD)", ("setx",)),
    (r"npm config", r"set\s+\S*(?:_authToken|_password|_auth)[\s=]", ("npm",)),
    (r"aws configure", r"set\s+\S*(?:secret_access_key|session_token)", ("aws",)),
    (r"cqlsh|snowsql|beeline", r"-p", ("cqlsh", "snowsql", "beeline")),
    *((r"ssh-keygen", f"-{it}", ("ssh-keygen",)) for it in "NP"),
    (r"send[eE]mail", r"-xp", ("sendemail",)),
    (r"gcloud", r"activate-refresh-token\s+[^\s\[]+", ("activate-refresh-token",)),
    (r"poetry config", r"(?:pypi-token\.[\w.-]+|http-basic\.[\w.-]+\s+[^\s\[]+)", ("poetry",)),
    (r"mc", r"(?:alias|config\s+host)\s+(?:set|add)(?:\s+[^\s\[]+){3}\s", ("alias", "config")),
    (r"iwconfig", r"key\s+s:", ("iwconfig",)),
)

AFTER = [
    Form(Pattern(rf"(bearer(?:\s+|:\s*)){_VALUE}{{4,}}", re.I), ("bearer",), _PUT),
    Form(
        Pattern(
            rf"(authorization{_MARK}\s*[:=,]\s*{_MARK}(?:basic|bearer|token|api-?key|key|negotiate|ntlm|sso-key|splunk)"
            rf"(?:\s|%20|\+)+){_VALUE}+",
            re.I,
        ),
        ("authorization",),
        _PUT,
    ),
    # Of several parts, of which any may be the secret one.
    Form(
        Pattern(
            r"(authorization[\"']?\s*[:=]\s*[\"']?(?:digest|oauth|signature|hmac|aws4-hmac-sha256)\s+)"
            r"(?!\[token removed\])[^\r\n]+",
            re.I,
        ),
        ("authorization",),
        _PUT,
    ),
    Form(
        Pattern(
            r"(\b(?:set-)?cookie[\"']?\s*:\s*[\"']?)(?!\[token removed\])[\w.-]+=(?!\[token removed\])[^\r\n\"'\\]+",
            re.I,
        ),
        ("cookie",),
        _PUT,
    ),
    Form(Pattern(rf"(authorization{_MARK}\s*[:=]\s*{_MARK}){_MIXED}", re.I), ("authorization",), _PUT),
    Form(Pattern(rf"(\bsshpass\s+-p\s*[\"']?){_VALUE}+", re.I), ("sshpass",), _PUT),
    # Of a command line, of .netrc and of Docker's settings; a token under its bare name, which tokenizers have as well.
    Form(Pattern(rf"((?:^|\s)--(?:{_NAMES}|token)\s+){_VALUE}{{6,}}", re.I), ("--",), _PUT),
    Form(
        Pattern(rf"((?:^|\s)--?(?:(?:user|vault|http|ftp|proxy|store|key)-?)?(?:pass|pwd?|auth)[\s=:]+){_DRAWN}"),
        ("pass", "pw", "auth"),
        check=mixed,
    ),
    Form(Pattern(rf"(\blogin\s+\S+\s+password\s+){_VALUE}+", re.I), ("login",), _PUT),
    Form(
        Pattern(rf"((?:^|\s)(?:-u\s+|--(?:proxy-)?user[\s=]+)[\"']?[A-Za-z][\w.@-]*:){_VALUE}{{6,}}", re.I),
        ("-u",),
        _PUT,
    ),
    # As each of these programs takes them, in one word with the option or the next one.
    *(
        Form(Pattern(rf"(\b(?:{programs})\b[^\r\n|;]{{0,300}}?\s{option}\s*[\"']?){_VALUE}{{4,}}"), hints, _PUT)
        for programs, option, hints in _PROGRAMS
    ),
    # Of Windows' shares and accounts, with the password before or after the name, or in its place.
    Form(
        Pattern(
            rf"(\bnet\s+use\s+[^\r\n]{{0,200}}?\\\\[^\s\"']+[\"']?(?:\s+/(?:u(?:ser)?:|p)[^\s]*)*\s+[\"']?(?!/)){_VALUE}{{4,}}",
            re.I,
        ),
        ("net",),
        _PUT,
    ),
    Form(
        Pattern(rf"(\b(?:net\s+user|runas\s+/user:)\s*\S+\s+[\"']?(?!/)){_VALUE}{{8,}}", re.I),
        ("net", "runas"),
        check=mixed,
    ),
    # Under whatever option that ends so, what is drawn.
    Form(
        Pattern(
            rf"((?:^|\s)--?(?:[A-Za-z][\w-]{{0,40}})?(?:pass|passw(?:or)?d|passphrase|token|secret|key|auth)"
            rf"[\s=]+[\"']?){_DRAWN}",
            re.I,
        ),
        ("pass", "token", "secret", "key", "auth"),
        check=mixed,
    ),
    # In the place that it has in these commands.
    Form(
        Pattern(
            r"(\b(?:cargo\s+login|isql(?:\s+[\w.-]+){2}|bw\s+(?:unlock|login\s+[^\s\[]+@[^\s\[]+)|rclone\s+obscure)"
            rf"\s+[\"']?){_DRAWN}"
        ),
        ("cargo", "isql", "unlock", "login", "obscure"),
        check=mixed,
    ),
    # As it is asked for and given, by people, mail servers, PowerShell, expect, and a command that tells it.
    Form(Pattern(rf"(\bpass(?:word|phrase) for [^\s:]{{1,99}}:\s*){_DRAWN}", re.I), (" for ",), check=mixed),
    Form(Pattern(rf"(\bauth\s+(?:plain|login|xoauth2)\s+){_MIXED}", re.I), ("auth",), _PUT),
    Form(Pattern(rf"(securestring\s+(?:-\w+\s+){{0,3}}[\"']?){_DRAWN}", re.I), ("securestring",), check=mixed),
    Form(Pattern(rf"(\bsend\s+(?:--\s+)?[\"']){_DRAWN}"), ("send",), check=mixed),
    Form(
        Pattern(rf"(passw(?:or)?d[_-](?:command|cmd)[\s=]+[\"']?echo\s+){_VALUE}{{4,}}", re.I),
        ("command", "cmd"),
        _PUT,
    ),
    # In addresses of Oracle and of CVS.
    Form(Pattern(rf"(jdbc:oracle:\w+:[\w.-]+/){_VALUE}{{4,}}(?=@)", re.I), ("jdbc:oracle:",), _PUT),
    Form(
        Pattern(r"(:(?:pserver|gserver|kserver|ext):[\w.-]+:)(?!\[token removed\])[^\s@\[]{4,}(?=@)"),
        ("server:", ":ext:"),
        _PUT,
    ),
    # Handed to a program's standard input.
    Form(Pattern(rf"(<<<\s*[\"']?){_DRAWN}"), ("<<<",), check=mixed),
    Form(
        Pattern(
            rf"(\becho\s+(?:-\w+\s+)?[\"']?){_VALUE}{{4,}}(?=[\"']?\s*\|\s*(?:sudo\b|kinit\b|su\b|gpg\b|openssl\b|"
            r"cryptsetup\b|\w*passwd\b|(?:docker|podman|helm|oras|skopeo|crane|az|gh|hf|huggingface-cli)\b[^\r\n|;]{0,99}\blogin\b))"
        ),
        ("echo",),
        _PUT,
    ),
    Form(
        Pattern(
            r"((?:secret[_-]?access[_-]?key|client[_-]?secret|api[_ -]?key|access[_-]?token|auth[_-]?token|"
            rf"passw(?:or)?d)\s+){_MIXED}",
            re.I,
        ),
        [*_OF_NAMES, "api key"],
        _PUT,
    ),
    Form(
        Pattern(
            rf"((?:\b(?:password|passphrase|secret|api[_ -]?key)|(?:(?<![A-Za-z])|(?<=[_-]))token) is:? {_MARK})"
            rf"{_DIGIT_AND_LETTER}{_DRAWN}",
            re.I,
        ),
        ("password is", "passphrase is", "secret is", "key is", "token is"),
        check=mixed,
    ),
    Form(Pattern(rf"([?&](?:amp;)?key=){_MIXED}", re.I), ("key=",), _PUT),
    # The address of an access key of AWS, with the key's other half beside it.
    Form(
        Pattern(r"(\[token removed\][\"']?[\s:,]{1,9}[\"']?)[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+=])"),
        ("[token removed]",),
        _PUT,
    ),
    Form(Pattern(r"(\"username\"\s*:\s*\"[^\"\r\n]{0,99}\",\s*\"key\"\s*:\s*\")[0-9a-f]{32}(?=\")"), ('"key"',), _PUT),
    Form(Pattern(rf"(\"_?auth\"\s*:\s*\"|\b_auth\s*=\s*){_VALUE}{{8,}}", re.I), ("auth",), _PUT),
    Form(Pattern(rf"(\bcookie[\"']?\s*:\s*[\"']?(?:[\w.-]+=)?+){_VALUE}{{6,}}", re.I), ("cookie",), _PUT),
    Form(
        Pattern(
            r"((?:(?:(?<![A-Za-z])|(?<=[_-])|(?<=[ _-]D)|(?-i:(?<=[a-z])(?=T)))token|\bapi key(?: provided)?)"
            rf"{_IS}){_MIXED}",
            re.I,
        ),
        ("token", "api key"),
        _PUT,
    ),
    # Names that much else has as well, and what is drawn under them.
    Form(Pattern(rf"((?:{_common()}){_IS}){_DRAWN}"), _COMMON, check=mixed),
    Form(Pattern(rf"(\blogin\(\s*{_MARK}){_DRAWN}"), ("login(",), check=mixed),
    # As an environment has them.
    *(
        Form(Pattern(rf"((?:{_capitals()})(?:_?\d+)?{assigned}){_NO_VALUE}{_VALUE}{{6,}}"), hints, _PUT)
        for assigned, hints in (
            (rf"[\"']?\s*=\s*{_MARK}", [it.lower() for it in ("TOKEN", *_ENDS, *_WHOLE_WORDS)]),
            (r"[\"']\]\s*=\s*[\"']", ("']", '"]')),
        )
    ),
    Form(
        Pattern(
            rf"((?<![A-Za-z0-9_])[A-Z][A-Z0-9_]*(?<!CACHE)(?<!SORT)(?<!PUBLIC)_KEY[\"']?\]?\s*=\s*{_MARK}){_CALL}{_MIXED}"
        ),
        ("_key",),
        _PUT,
    ),
    # In XML and in .NET's settings.
    Form(
        Pattern(
            r"(<(?:[\w.:-]*(?:password|passwd|passphrase|secret|token|api_?key))>\s*)(?!\[token removed\])[^<\s]{6,}"
            r"(?=\s*</)",
            re.I,
        ),
        ("password>", "passwd>", "passphrase>", "secret>", "token>", "apikey>", "api_key>"),
        _PUT,
    ),
    Form(
        Pattern(rf"((?:password|passwd|secret|token|api_?key)[\"']? value=[\"']){_VALUE}{{6,}}", re.I),
        (" value=",),
        _PUT,
    ),
    # In quotation marks to the closing one, whatever stands between.
    *(
        Form(
            Pattern(
                rf"((?:{_NAMES})[\"']?\]?\s*[=:]\s*\[?\s*{mark})"
                rf"(?!\[token removed\])[^{mark}\r\n\\]{{6,200}}(?={mark})",
                re.I,
            ),
            _OF_NAMES,
            _PUT,
        )
        for mark in "\"'"
    ),
    Form(Pattern(rf"((?:{_NAMES}){_MARK}\s*[=:]\s*\[?\s*{_MARK}){_CALL}{_VALUE}{{6,}}", re.I), _OF_NAMES, _PUT),
    # What stands before the host of an address: a name with a password, or a token alone.
    Form(
        Pattern(
            r"(\b[a-z][a-z0-9+.-]{0,30}://)(?!\[token removed\]@)(?:\[token removed\]|[^\s/@:\"'<>])*:"
            r"[^\s/\"'<>]+(?=@)",
            re.I,
        ),
        ("://",),
        _PUT,
    ),
    Form(Pattern(r"(\b[a-z][a-z0-9+.-]{0,30}://)(?!\[token removed\])[^\s/@:\"'<>]{16,}(?=@)", re.I), ("://",), _PUT),
    # The same without a scheme.
    Form(
        Pattern(r"((?<![\w@:.-])[A-Za-z][\w.%+-]{0,63}:)(?!\[token removed\])[^\s/@:\"'<>]{8,}(?=@[\w.-])"),
        (":",),
        check=mixed,
    ),
    # The same, percent-encoded in part or as a whole.
    Form(
        Pattern(
            r"(\b[a-z][a-z0-9+.-]{0,30}://)(?!\[token removed\])[^\s/@:%\"'<>]{0,99}%3A[^\s/@:\"'<>]{1,200}(?=@)", re.I
        ),
        ("%3a",),
        _PUT,
    ),
    Form(
        Pattern(
            r"(\b[a-z][a-z0-9+.-]{0,30}%3A%2F%2F)(?!\[token removed\])"
            r"[^\s/@:%\"'<>&]{0,99}%3A(?:(?!%2F)[^\s/@:\"'<>&]){1,200}(?=%40)",
            re.I,
        ),
        ("%3a%2f%2f",),
        _PUT,
    ),
]
