"""Credentials: none reaches a worker, a record, a page, an export or the terminal, by whatever way it came in."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import __main__ as command_line
from harness.base import secrets
from harness.base.errors import HarnessError, MatrixError, WorkerError
from harness.base.secrets import cleaned, is_secret, without_secrets
from harness.base.text import redact
from harness.devices import open_device
from harness.matrix.config_text import parse_config
from harness.matrix.plan import Matrix
from harness.publish.recipe_code import expression
from harness.records.run import Run
from harness.records.schema import Device, Failure, Header
from harness.report.spreadsheet import quoted, unquoted
from harness.runtime.environment import Environment, at, overlay
from harness.runtime.process import Process
from harness.runtime.store import Store
from harness.runtime.variables import passed_on
from tests import laws
from tests.test_stored import CELL

SECRET = "AbCd1234EfGh5678IjKl9012MnOp3456"
TEXTS = [
    f"hf_{SECRET}",
    f"HF_{SECRET.upper()}",
    f"hf_oauth_eyJ0.{SECRET}",
    f"hf_jwt_{SECRET}",
    f"api_org_{SECRET}",
    f"ghp_{SECRET}",
    f"GHO_{SECRET}",
    f"ghs_{SECRET}",
    f"github_pat_11ABCDE_{SECRET}",
    f"glpat-{SECRET}",
    f"npm_{SECRET}",
    f"xoxb-1234-{SECRET}",
    f"sk-proj-{SECRET}",
    f"sk-ant-api03-{SECRET}",
    f"AIza{SECRET}xyz",
    "AKIAABCD1234EFGH5678",
    "asiaabcd1234efgh5678",
    f"aws_secret_access_key = {SECRET}",
    f"AWS_SECRET_ACCESS_KEY={SECRET}",
    f"'aws_session_token': '{SECRET}'",
    f'"password": "{SECRET}"',
    f"MY_PASSWORD={SECRET}",
    f"--api-key={SECRET}",
    f"Authorization: Bearer {SECRET}",
    f"AUTHORIZATION: BEARER {SECRET}",
    f"authorization: bearer  {SECRET}",
    f"Authorization: Basic {SECRET}",
    f"https://ada:{SECRET}@example.org/simple",
    f"HTTPS://ADA:{SECRET}@EXAMPLE.ORG",
    f"redis://:{SECRET}@localhost",
    f"https://{SECRET}@github.com/o/r.git",
    f"https://s3/x?X-Amz-Signature={SECRET}&y=1",
    f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{SECRET}",
    f"npm_config__authToken={SECRET}",
    f"gsk_{SECRET}",
    f"xai-{SECRET}",
    f"nvapi-{SECRET}",
    f"hvs.{SECRET}",
    "dapiabcd1234efgh5678abcd1234efgh5678".replace("g", "a").replace("h", "b"),
    f"SG.{SECRET}.{SECRET}",
    f"dckr_pat_{SECRET}",
    f"sk_test_{SECRET}",
    f"GOCSPX-{SECRET}",
    f"https://hooks.slack.com/services/T0/B0/{SECRET}",
    f"machine host login ada password {SECRET}",
    f"curl -u ada:{SECRET} https://host",
    f"twine --password {SECRET}",
    f"hf --token {SECRET}",
    f'{{"auths": {{"host": {{"auth": "{SECRET}="}}}}}}',
    f"https://store/x?sv=1&sig={SECRET}",
    f"Server=h;Uid=ada;Pwd={SECRET};",
    f"DB_PASS={SECRET}",
    f"token={SECRET}",
    f'"token": "{SECRET}"',
    f"Cookie: session={SECRET}",
    f"https://ada:{SECRET}@{SECRET}@example.org",
    f"git+https://x-access-token:{SECRET}@github.com/o/r@v1",
    f"{SECRET}\n{SECRET}\n-----END OPENSSH PRIVATE KEY-----",
    f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n{SECRET}\n-----END PGP PRIVATE KEY BLOCK-----",
    f"-----BEGIN RSA PRIVATE KEY-----\n{SECRET}\n-----END RSA PRIVATE KEY-----",
    f"Authorization: ApiKey {SECRET}",
    f"AUTHORIZATION=Bearer%20{SECRET}",
    f'Authorization: Digest username="ada", response="{SECRET}"',
    f"Authorization: AWS4-HMAC-SHA256 Credential=x/y, SignedHeaders=host, Signature={SECRET}",
    f"sshpass -p {SECRET} ssh host",
    f"Authorization: {SECRET}",
    f"https://ada%3A{SECRET}@example.org/x",
    f"https%3A%2F%2Fada%3A{SECRET}%40example.org%2Fx",
    f"https://store/x?sv=1&amp;sig={SECRET}",
    f'password="correct horse {SECRET} staple"',
    f"passphrase: 'of, several, words {SECRET}'",
    f'{{\\"password\\": \\"{SECRET}\\"}}',
    f"api_key=&quot;{SECRET}&quot;",
    f"glpat-{SECRET}.01.0w1abcd12",
    f"1//0g{SECRET}",
    f"https://api.telegram.org/bot123456789:AAx{SECRET}/getMe",
    "SKabcd1234efab5678abcd1234efab5678",
    f"client-key-data: {SECRET}",
    f"Incorrect API key provided: {SECRET}",
    f"curl -uada:{SECRET} https://host",
    f"curl -sSLuada:{SECRET} https://host",
    f"curl -x proxy --proxy-user ada:{SECRET} -u'ada:{SECRET}' https://host",
    f"curl --user=ada:{SECRET} https://host",
    f"http -a ada:{SECRET} host",
    f"mysql -p{SECRET} -h host",
    f"mysqldump -uroot -p'{SECRET}' base",
    f"mariadb -u root -p{SECRET}",
    f"docker login -u ada -p {SECRET} registry",
    f"twine upload -u __token__ -p {SECRET}",
    f"mongosh -u ada -p {SECRET}",
    f"redis-cli -h host -a {SECRET}",
    f"ldapsearch -D cn=ada -w {SECRET}",
    f"smbclient //host/share -U ada%{SECRET}",
    f"openssl enc -aes256 -pass pass:{SECRET}",
    f"aws configure set aws_secret_access_key {SECRET}",
    f"https://maps/x?q=1&key={SECRET}",
    f"jwt=eyJhbGciOi.eyJzdWIi.{SECRET}",
    f"EYJHBGCIOIJIUZI1NIJ9.EYJZDWIIOIIXMJM0IN0.{SECRET.upper()}",
    f"XOXB-1234-{SECRET}",
    f"GITHUB_PAT_11_{SECRET}",
    f"SK-PROJ-{SECRET}",
    f"GLPAT-{SECRET}",
    f"HF_OAUTH_{SECRET}",
    *(
        f"{form}{SECRET}"
        for form in ("glptt-", "whsec_", "sntrys_", "glsa_", "dp.pt.", "sq0atp-", "phc_", "AQ.", "EAAC")
    ),
    # Of Windows, of further programs, and handed to their standard input.
    rf"net use Z: \\host\share {SECRET} /user:ada",
    rf"net use \\host\share /user:DOMAIN\ada {SECRET} /persistent:yes",
    f"net user ada {SECRET} /add",
    f"cmdkey /add:host /user:ada /pass:{SECRET}",
    f"openssl enc -aes-256-cbc -k {SECRET} -in file",
    f"openssl rsa -passin 'pass:{SECRET}'",
    f"openssl req -passout=pass:{SECRET}",
    f"sqlcmd -S host -U sa -P {SECRET}",
    f"sqlplus scott/{SECRET}@base",
    f"plink -pw {SECRET} host",
    f"7z x -p{SECRET} file.7z",
    f"unzip -P {SECRET} file.zip",
    f"keytool -storepass {SECRET}",
    f"snmpwalk -v3 -A {SECRET} -X {SECRET}",
    f"htpasswd -nb ada {SECRET}",
    f"htpasswd -b file ada {SECRET}",
    f"vault login {SECRET}",
    f"wandb login {SECRET}",
    f"gh auth login --with-token {SECRET}",
    f"setx HF_TOKEN {SECRET}",
    f"curl -b 'session={SECRET}' https://host",
    f"curl --cert cert.pem:{SECRET} https://host",
    f"aws configure set aws_session_token {SECRET}",
    f"adb shell input text {SECRET}",
    f"echo {SECRET} | sudo -S command",
    f"echo '{SECRET}' | docker login -u ada --password-stdin",
    f"kinit ada <<< {SECRET}",
    f"--pass={SECRET} --pwd {SECRET} --auth {SECRET}",
    # Cut short, in bytes, in subscripts, in lists, in XML, in words, without a scheme, beside another.
    "hf_AbCd1234EfGh",
    "hf_AbCdEfGhIjKlMnOp",
    rf"net use \\srv\ipc$ /u:ada {SECRET}",
    f"gcloud auth activate-refresh-token ada {SECRET}",
    f"poetry config pypi-token.pypi pypi-{SECRET}",
    f"poetry config http-basic.here ada {SECRET}",
    f"cargo login {SECRET}",
    f"rclone obscure {SECRET}; rclone copy --sftp-pass {SECRET} a b",
    f"restic --password-command 'echo {SECRET}'",
    f"cryptsetup luksOpen /dev/x --key {SECRET}",
    f'expect -c send "{SECRET}\\r"',
    f"iwconfig wlan0 key s:{SECRET}",
    f'ConvertTo-SecureString -String "{SECRET}" -AsPlainText',
    f"Password for ada: {SECRET}",
    f"cqlsh host -u ada -p {SECRET}",
    f"beeline -n ada -p {SECRET}",
    f"jdbc:oracle:thin:ada/{SECRET}@host:1521:x",
    f"isql DSN ada {SECRET}",
    f"cvs -d :pserver:ada:{SECRET}@host:/x",
    f"AUTH PLAIN {SECRET}",
    f"sendEmail -xu ada -xp {SECRET}",
    f"openvpn --auth-user-pass {SECRET}",
    f"PresharedKey = {SECRET}=",
    f"ssh-keygen -p -P {SECRET} -N {SECRET}",
    f"bw unlock {SECRET}",
    f"bw login ada@host {SECRET}",
    f"travis login --github-token {SECRET}",
    f"mc alias set mine http://host ADA {SECRET}",
    "HF_TOKEN=hf_abcd1234",
    f"'authorization': b'Basic {SECRET}'",
    f"('Authorization', 'Bearer {SECRET}')",
    f"Bearer:{SECRET}",
    f"'token': b'{SECRET}'",
    f"os.environ['HF_TOKEN'] = '{SECRET}'",
    f'"password": ["{SECRET}"]',
    f"<password>{SECRET}</password>",
    f'<add key="Password" value="{SECRET}" />',
    f"the password is '{SECRET}'",
    f"HF_TOKEN is {SECRET}",
    f"secret key: {SECRET}",
    f"wandb: api key {SECRET}",
    f"login('{SECRET}')",
    f"Cookie: a=b; sid={SECRET}",
    f"//ada:{SECRET}@host/x",
    f"ada:{SECRET}@host.example.org/simple",
    f"s3://AKIAABCD1234EFGH5678:{SECRET}@bucket",
    f"AKIAABCD1234EFGH5678:{SECRET}+IjKlM/n",
    '{"username": "ada", "key": "abcd1234efab5678abcd1234efab5678"}',
    f"PuTTY-User-Key-File-3: ssh-ed25519\nPrivate-Lines: 1\n{SECRET}",
    # Under names that much else has as well.
    *(
        f"{name}{SECRET}"
        for name in (
            "pass: ",
            "pwd=",
            "auth=",
            "jwt=",
            "creds=",
            "key=",
            "PHPSESSID=",
            "?code=",
            "Signature=",
            "-Dtoken=",
        )
    ),
    *(f"{name}={SECRET}" for name in ("SSH_KEY", "GH_PAT", "SERVICE_AUTH", "SSHPASS", "REDISCLI_AUTH", "MY_DSN")),
    *(f"{name}=onlywordsabcd1234" for name in ("CI_JOB_TOKEN", "MY_SECRET_2", "MYSQL_PWD", "X_API_KEY")),
]
PLAIN = [
    "max_new_tokens=128, window_tokens: 256, eos_token: '<|endoftext|>'",
    "self.hf_quantizer.preprocess(model); import hf_transfer; HF_HUB_OFFLINE=1",
    "ssh://git@github.com/pytorch/ao.git and https://huggingface.co/owner/name@main",
    "a task-specific mask-generation of desk-top-publishing-software-packages",
    "api_key=EMPTY, api_key: None, password: ''",
    "b2f0d5e1c7a94c1d8e3f5a6b7c8d9e0f1a2b3c4d and /srv/a_b/c-d.json at 12:30:45",
    "the bearer of",
    "eos_token: 50256, pad_token=<|endoftext|>, token: 12345678901234567890, next token: the",
    "tokens per second 1234567890, --user 1000:1000, -u 1000:1000 and -p 8000:8000",
    "pre-commit run --all-files, http://127.0.0.1:8000/v1/models, https://host:8443/a@b",
    "d_model=1024 dapi.md SG. hvs. r8 and LTAI; torch.float8_e4m3fn; model.layers.0.self_attn.q_proj.weight",
    "10:20@30 user@host:22",
    "curl -sS -p 8000 -o out https://host:8443/v1, curl -u, mysql -P 3306 -h host, mysql -p base",
    "docker run -p 8080:80 -u 1000:1000 image, docker login registry, redis-cli -h host, az login --identity",
    "forward_pass torch.float8_e4m3fn_layer, a secret of 128x128_blocks_of_scales, ?key=value&key=2, ldap -w",
    "next=https%3A%2F%2Fhost%3A8080%2Fa%40b, https://host/a%3Ab@c, 1//0, 12:AA, an API key provided: none, task SK1",
    "Authorization: required, authorization: none; sshpass is not here; key-value-cache, a dp.step, phase_x",
    "q_rot, q_pass = torch.split(q, [64, 64]); k_pass = self.kv_a_layernorm_2(kv_pass).view(1, 2)",
    "weight_key = kFp8Static128BlockSym if wide else kInt4Static32Asym; activation_key=kNvfp4Static, key=kMxfp8Static",
    'node.meta[QUANT_ANNOTATION_KEY] = _X86InductorQuantizationAnnotation(); os.environ["RAY_AUTH_TOKEN"] = hex(32)',
    "hf_transfer hf_quantizer hf_SmolLM2 hf_llama3 hf_BertForMaskedLM hf_xet hf_device_map hf_gpt2medium hf_wikitext2",
    "HF_TOKEN=unset, HF_TOKEN=$HF_TOKEN, EOS_TOKEN=endoftext, CACHE_KEY=0123456789abcdef0, PWD=/srv/work, MAX_TOKENS=8",
    "--tokenizer-mode auto --api-key-env NAME --cache-key Int8DynamicActivation; send the Qwen2VLForConditional",
    "cargo and isql, ssh-keygen -t ed25519 -N '' -f x; auth login is asked; a bw of 3 GB/s, --auth-user-pass file.txt",
    "the password is not known; a token is 1.3 words; net use of memory: 3 GB; the key is Qwen2VLForConditional",
    'key: 0f3a9c5e77b1d2046aa8, "key": "checkpoint-0f3a9c5e77b1d204", code=E501, pass: 1st-quantization, auth: basic',
    "zip and unzip, -P 8 of 2; openssl version; curl -k -E cert.pem https://host; echo done | tee x; login(), <<< here",
    "model:Qwen2.5-7B-Instruct@main, SmolLM2-135M-Instruct:int8wo, 12:30:45 ada@host, <token>the</token>, net user",
]


@pytest.fixture(autouse=True)
def no_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if is_secret(name)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("text", TEXTS)
def test_whatever_looks_like_a_credential_is_taken_out(text: str) -> None:
    found = without_secrets(f"it said {text}, then ended")
    assert not any(part in found.lower() for part in (SECRET.lower(), "abcd1234", "efgh5678"))
    assert "[token removed]" in found
    assert found.startswith("it said ")
    assert without_secrets(found) == found == redact(found)


@pytest.mark.parametrize("text", PLAIN)
def test_other_words_stay(text: str) -> None:
    assert without_secrets(text) == text


FORMS = [*secrets.FORMS, *secrets.AFTER]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.hints[0])
@given(st.data())
@laws.examples(20, quick=4, filters=True)
def test_all_that_a_form_finds_has_one_of_its_hints(form: secrets.Form, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(form.pattern.compiled))
    found = form.pattern.compiled.search(text)
    assert found
    assert any(hint in secrets._lower(found[0]) for hint in form.hints)


@given(
    st.lists(
        st.sampled_from([*TEXTS, *PLAIN, *" \n\"'&=:-@/\u0130\u0131\u017f\u212a"]) | st.text(max_size=5), max_size=6
    )
)
def test_hints_change_nothing_of_what_is_taken_out(parts: list[str]) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("FORMS", "AFTER"):
            patch.setattr(secrets, name, [replace(form, hints=("",)) for form in getattr(secrets, name)])
        whole = secrets._by_form(text)
    assert secrets._by_form(text) == whole


@given(st.text())
def test_taking_out_twice_is_taking_out_once(text: str) -> None:
    assert without_secrets(without_secrets(text)) == without_secrets(text)


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "MY_TOKEN",
        "github_token",
        "DB_PASSWORD",
        "AZURE_CLIENT_SECRET",
        "OPENAI_API_KEY",
        "X_PAT",
        "OPENAI_KEY",
        "DB_PASS",
        "DB_PWD",
        "SENTRY_DSN",
    ],
)
def test_what_stands_in_the_environment_as_a_credential_is_taken_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert without_secrets("it is plain words 4711.") == "it is plain words 4711."
    monkeypatch.setenv(name, "plain words 4711")
    assert without_secrets("it is plain words 4711.") == "it is [token removed]."
    monkeypatch.delenv(name)
    assert without_secrets("it is plain words 4711.") == "it is plain words 4711."
    monkeypatch.setenv(name, "/run/secrets/file")
    assert without_secrets("see /run/secrets/file") == "see /run/secrets/file"


@pytest.mark.parametrize(
    "name",
    [
        "TOKENIZERS_PARALLELISM",
        "VLLM_MAX_TOKENS",
        "KEYBOARD",
        "HF_TOKEN_PATH",
        "PATH",
        "PATTERN",
        "MONKEY",
        "PWD",
        "OLDPWD",
        "BYPASS",
        "CACHE_KEY",
    ],
)
def test_a_name_that_only_sounds_like_one_is_none(name: str) -> None:
    assert not is_secret(name)


def test_data_is_cleaned_text_by_text() -> None:
    data = {"a": [f"hf_{SECRET}", 1, None], "b": {"c": "x"}, "d": [1.0, 2.0]}
    assert cleaned(data) == {"a": ["[token removed]", 1, None], "b": {"c": "x"}, "d": [1.0, 2.0]}
    kept = {"b": {"c": "x"}, "d": [1.0, 2.0]}
    assert cleaned(kept) is kept


# ----------------------------------------------------------------------------------------------- where text leaves


def test_no_record_and_no_attachment_holds_one(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    device = Device(name="d")
    run.append(Header(run="r", command=["pytest", "--model", f"hf_{SECRET}"], packages={}, device=device))
    run.append(
        Failure(cell=CELL, stage="s", failure="exception", message=f"password={SECRET}", log_tail=f"ghp_{SECRET}")
    )
    attached = run.attach("a", {"log": [f"https://ada:{SECRET}@host"]})
    assert SECRET not in run.path.read_text()
    assert SECRET not in (run.folder / attached).read_text()
    header, failure = run.lines()
    assert isinstance(header, Header)
    assert header.command == ["pytest", "--model", "[token removed]"]
    assert isinstance(failure, Failure)
    assert failure.message == "password=[token removed]"


def test_no_error_of_ours_tells_one() -> None:
    assert SECRET not in str(HarnessError(f"no model hf_{SECRET}"))
    assert SECRET not in str(WorkerError(f"Bearer {SECRET}", stage="s", kind="http"))


@pytest.mark.parametrize("given", [f"hf_{SECRET}", f"hf_oauth_{SECRET}", f"ghp_{SECRET}", f"https://a:{SECRET}@host/x"])
def test_a_token_given_where_a_model_is_expected_is_not_echoed(
    suites_matrix: Matrix, given: str, pytester: pytest.Pytester, repository: Path
) -> None:
    for ask in (suites_matrix.model, suites_matrix.recipe):
        with pytest.raises(MatrixError) as caught:
            ask(given)
        assert SECRET not in str(caught.value)
        assert "[token removed]" in str(caught.value)


@pytest.mark.programs
def test_the_terminal_does_not_echo_one(pytester: pytest.Pytester, repository: Path) -> None:
    pytester.makeconftest('pytest_plugins = ["harness.plugin.plugin"]')
    words = ["--matrix", str(repository / "suites" / "matrix.toml"), "--collect-only", "-p", "no:cacheprovider"]
    for option in ("--model", "--recipe", "--server"):
        result = pytester.runpytest_subprocess(*words, option, f"hf_{SECRET}", str(repository / "suites"))
        assert SECRET not in result.stdout.str() + result.stderr.str()
        assert "[token removed]" in result.stdout.str() + result.stderr.str()


@pytest.mark.programs
def test_neither_terminal_nor_junit_has_one_of_an_errors_causes_or_of_what_was_printed(
    pytester: pytest.Pytester,
) -> None:
    pytester.makeconftest('pytest_plugins = ["harness.plugin.plugin"]')
    pytester.makepyfile(
        f"""
        def test_x():
            print("got glpat-{SECRET}")
            try:
                raise ConnectionError("https://ada:{SECRET}@host refused")
            except ConnectionError as error:
                raise ValueError("xoxb-1234-{SECRET}") from error
        """
    )
    result = pytester.runpytest_subprocess("--junitxml=out.xml", "--tb=native", "-rA", "-p", "no:cacheprovider")
    told = result.stdout.str() + result.stderr.str() + (pytester.path / "out.xml").read_text(encoding="utf-8")
    assert "ValueError" in told
    assert "ConnectionError" in told
    assert SECRET not in told


def test_no_command_echoes_one(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (
        ["table", f"hf_{SECRET}"],
        ["publish", f"hf_{SECRET}", "--to", "o/n"],
        ["table", "x", f"--ghp_{SECRET}"],
    ):
        with contextlib.suppress(SystemExit):
            assert command_line.main(words) == 2
        told = capsys.readouterr()
        assert SECRET not in told.out + told.err


@pytest.mark.programs
def test_no_log_of_a_process_keeps_one_once_it_has_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"own{SECRET}")
    log = tmp_path / "server.log"
    log.write_bytes(b"before\n")
    code = f"print('\\udcff one', 'hf_' + '{SECRET}', 'own' + '{SECRET}', 'then more')"
    environ = {"PYTHONIOENCODING": "utf-8:surrogateescape"}
    process = Process([sys.executable, "-c", code], environ=environ, log=log)
    assert process.wait(30) == 0
    process.end()
    assert log.read_bytes() == b"before\n\xff one [token removed] [token removed] then more\n"
    process.end()


# ------------------------------------------------------------------------------------------------ what workers get


def test_workers_get_what_they_need_and_no_credential() -> None:
    given = {
        "PATH": "/bin",
        "LD_LIBRARY_PATH": "/lib",
        "HF_HOME": "/hf",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "NCCL_NVLS_ENABLE": "0",
        "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
        "NVSHMEM_DISABLE_NVLS": "1",
        "OMP_NUM_THREADS": "2",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONHASHSEED": "0",
        "TMPDIR": "/tmp",
        "no_proxy": "localhost",
    }
    kept_back = dict.fromkeys(
        [
            "HF_TOKEN",
            "HUGGING_FACE_HUB_TOKEN",
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_PROFILE",
            "AZURE_CLIENT_SECRET",
            "GOOGLE_APPLICATION_CREDENTIALS",
            "OPENAI_API_KEY",
            "VLLM_API_KEY",
            "GITHUB_TOKEN",
            "SSH_AUTH_SOCK",
            "KUBECONFIG",
            "MY_SETTING",
            "PYTEST_CURRENT_TEST",
        ],
        "x" * 20,
    )
    proxies = {"https_proxy": "http://ada:pass@proxy:3128", "HTTP_PROXY": "ada:pass@proxy:3128", "ALL_PROXY": "proxy:1"}
    found = passed_on(given | kept_back | proxies)
    plain = {"https_proxy": "http://proxy:3128", "HTTP_PROXY": "proxy:3128", "ALL_PROXY": "proxy:1"}
    assert found == given | plain


def test_ones_own_variables_are_handed_on_by_name_in_every_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SETTING", "1")
    monkeypatch.setenv("MY_API_KEY", "asked for")
    store = Store(tmp_path)
    base = Environment(passed=("MY_*",))
    for environment in (base, at(tmp_path, base)):
        environ = environment.environ(store)
        assert (environ["MY_SETTING"], environ["MY_API_KEY"]) == ("1", "asked for")
    assert "MY_SETTING" not in Environment().environ(store)
    assert overlay is not None


# -------------------------------------------------------------------------------------- spreadsheets, devices, recipes


@given(st.text(alphabet=st.sampled_from("=+-@\t\r'a1 ") | st.characters(exclude_categories=("Cs",))))
def test_no_cell_is_a_formula_and_every_cell_is_read_as_it_was(text: str) -> None:
    cell = quoted(text)
    assert unquoted(cell) == text
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))
    written = io.StringIO()
    csv.writer(written, quoting=csv.QUOTE_ALL).writerow([cell])
    if "\r" not in text and "\n" not in text and "\0" not in text:
        assert [unquoted(it) for it in next(csv.reader(io.StringIO(written.getvalue())))] == [text]


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "'=1", " =1", "\ufeff=1", "\u200b@A", "\u2212\u0031", "\xa0+1"],
)
def test_a_formula_is_a_text(text: str) -> None:
    assert quoted(text) == f"'{text}"
    assert quoted(f"a{text}") == f"a{text}"


@pytest.mark.parametrize("name", ["ssh:-oProxyCommand=touch /tmp/x", "ssh:ada@-oX", "adb:-H", "ios:-x", "-host"])
def test_a_device_that_would_be_an_option_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MatrixError, match="begins with a hyphen"):
        open_device(name, Store(tmp_path), Environment())
    assert open_device("ssh:board-1", Store(tmp_path), Environment()).name == "ssh:board-1"


@pytest.mark.parametrize(
    "name", ["ssh:`touch x`", "ssh:a;b", "ssh:$(x)", "ssh:ada@h|x", "ssh:a b", "ssh:a\nb", "adb:a\0b"]
)
def test_a_device_whose_name_a_shell_would_run_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MatrixError, match="is in no name of a device"):
        open_device(name, Store(tmp_path), Environment())
    for good in ("ssh:ada@board-1.local", "ssh:ssh://ada@[::1]:22", "ssh:board_1", "adb:emulator-5554"):
        assert open_device(good, Store(tmp_path), Environment()).name == good


KEYS = st.integers(-(2**40), 2**40) | st.text(st.characters(codec="ascii", categories=["Ll", "Nd"]), max_size=5)
VALUES = st.recursive(
    st.integers(-9, 9) | st.booleans() | st.none() | st.sampled_from(["torch.int4", "PerGroup(32)", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_a_recipe_of_the_command_line_round_trips_whatever_its_keys(table: dict[Any, Any]) -> None:
    parsed = parse_config(f"FqnToConfig(fqn_to_config={table!r})")
    assert json.loads(json.dumps(parsed)) == parsed
    assert parse_config(expression(parsed)) == parsed


def test_integer_keys_stay_integers() -> None:
    parsed = parse_config("SomeConfig(layers={1: 'a', -2: {3: 4}, '1': 'b'})")
    assert parsed["arguments"] == {"layers": {"int(1)": "a", "int(-2)": {"int(3)": 4}, "1": "b"}}
    assert expression(parsed) == "SomeConfig(layers={1: 'a', -2: {3: 4}, '1': 'b'})"


@pytest.mark.parametrize("key", ["1.5", "True", "None", "(1, 2)", "b'x'", "'int(1)'", "10**3", str(2**70)])
def test_a_key_that_json_cannot_hold_is_named(key: str) -> None:
    with pytest.raises(MatrixError, match="is no key"):
        parse_config(f"SomeConfig(layers={{{key}: 1}})")
