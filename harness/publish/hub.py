"""Uploads to the Hugging Face hub: what arrived is not sent again, every refusal says what to do, no token is shown."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from harness.base.errors import HarnessError
from harness.base.text import redact

T = TypeVar("T")

TRANSIENT = (408, 429, 500, 502, 503, 504)
"""Answers after which the same request may succeed; huggingface_hub's own list."""

LONGEST_WAIT = 600
"""Seconds that are waited at most because the hub asks for it."""

_TRIES = 5
_TOLD = re.compile(r"HTTP status (?:client|server) error \((\d{3})\b")
# Without a limit a hub that says nothing would be waited for for ever; a large commit takes its minutes.
_SILENCE = 300.0
_NO_TOKEN = "no token of the hub: run `hf auth login`, or set HF_TOKEN to a token with write access"  # noqa: S105 - words
AGAIN = "Run the same command again: what has arrived is not sent again."


class HubError(HarnessError):
    """The hub did not take what was sent; the message says what to do."""


def token() -> str | None:
    """Return the hub's token of ``HF_TOKEN`` or ``hf auth login``, or None."""
    import huggingface_hub

    found: str | None = huggingface_hub.get_token()
    return found


def upload(repository: str, card: str, files: Iterable[Path], *, private: bool, replace: bool) -> str:
    """Make ``repository`` hold the files and the card in one commit, and return the commit's address.

    Large files are sent before the commit; of an interrupted upload the next one sends what has not arrived yet. The
    hub's own account of sizes and digests is checked at the end. Raises HubError for what the hub refuses, for a
    repository that is public already where ``private`` is asked for, for other weights that are there already unless
    ``replace``, and for an answer that is not what was sent.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    secret = token()
    if secret is None:
        raise HubError(_NO_TOKEN)
    files = list(files)
    _check_secret(files, card, secret)
    with hidden(secret), _patient():
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=secret, library_name="torchao-harness")

        def additions() -> list[CommitOperationAdd]:
            found = [CommitOperationAdd(path.name, str(path)) for path in files]
            return [*found, CommitOperationAdd("README.md", card.encode())]

        def commit() -> str:
            # Made anew for each try: a commit whose answer got lost is then known to have nothing left to do.
            message = "Quantized checkpoint with its measurements"
            return str(api.create_commit(repository, operations or additions(), commit_message=message).commit_url)

        operations = additions()
        hashed = list(operations)
        with _explained(repository, secret):
            _steadily(lambda: api.create_repo(repository, private=private or None, exist_ok=True))
            if private:
                _check_private(api, repository)
            _check_free(_remote(api, repository), operations, repository, replace)
            total = sum(path.stat().st_size for path in files)
            print(f"uploading {len(files)} files ({total / 1e6:.1f} MB) to {repository}", file=sys.stderr)
            api.preupload_lfs_files(repository, operations, free_memory=False)
            address = _steadily(commit, after=operations.clear)
            _check_arrived(_remote(api, repository), hashed, repository)
        return address


def check_there(name: str, *, private: bool = False) -> None:
    """Raise HubError for a model that readers cannot download by this name.

    The hub has none of it, or hides it, which only a ``private`` repository may rest on. One whose terms must be
    accepted first is there.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    secret, instead = token(), "name the unquantized model with --base-model ID"
    if secret is None:
        raise HubError(_NO_TOKEN)
    with hidden(secret), _patient():
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=secret, library_name="torchao-harness")
        with _explained(name, secret):
            try:
                hides = _steadily(lambda: api.model_info(name)).private
            except GatedRepoError:
                return
            except RepositoryNotFoundError:
                raise HubError(f"{name} cannot be downloaded: the hub has no such model; {instead}") from None
    if hides and not private:
        raise HubError(f"{name} cannot be downloaded: the hub hides it from all but its owner; {instead}")


def _check_secret(files: Iterable[Path], card: str, secret: str) -> None:
    """Refuse to send the token itself, in whichever file it has got."""
    texts = [path for path in files if path.suffix != ".safetensors"]
    held = [path.name for path in texts if secret.encode() in path.read_bytes()] + ["README.md"] * (secret in card)
    if held:
        raise HubError(f"{', '.join(held)} holds the hub's token itself: take it out, and make a new token")


def _check_private(api: Any, repository: str) -> None:
    """Refuse a repository that the world sees: one that exists already keeps the visibility that it has."""
    if not _steadily(lambda: api.repo_info(repository)).private:
        raise HubError(
            f"{repository} is there already and is public, so --private would not hold: nothing was sent. Make "
            f"it private (`hf repos settings {repository} --private`), or choose another name."
        )


def _remote(api: Any, repository: str) -> dict[str, Any]:
    """Return the files at the top of the repository by name."""
    from huggingface_hub.hf_api import RepoFile

    tree = _steadily(lambda: list(api.list_repo_tree(repository)))
    return {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}


def _check_free(remote: dict[str, Any], operations: Iterable[Any], repository: str, replace: bool) -> None:
    ours = {it.path_in_repo: it for it in operations}
    weights = {name: it for name, it in remote.items() if name.endswith((".safetensors", ".bin"))}
    other = [name for name, it in weights.items() if name not in ours or not _arrived(it, ours[name])]
    if other and not replace:
        raise HubError(
            f"{repository} has other weights already: {', '.join(sorted(other))}; choose another name, or say --replace"
        )
    left = [name for name in other if name not in ours]
    if left:
        raise HubError(
            f"{repository} would keep {', '.join(sorted(left))} beside these weights; delete them there first"
        )


def _check_arrived(remote: dict[str, Any], operations: Iterable[Any], repository: str) -> None:
    wrong = [it.path_in_repo for it in operations if not _arrived(remote.get(it.path_in_repo), it)]
    if wrong:
        raise HubError(f"{repository} does not hold what was sent: {', '.join(wrong)}. {AGAIN}")


def _arrived(entry: Any, operation: Any) -> bool:
    if entry is None or entry.size != operation.upload_info.size:
        return False
    return entry.lfs is None or entry.lfs.sha256 == operation.upload_info.sha256.hex()


# --------------------------------------------------------------------------------------------------- what goes wrong


def _steadily(ask: Callable[[], T], after: Callable[[], object] = lambda: None) -> T:
    """Ask again, a few times, what may succeed later; ``after`` is called between. Waits as long as the hub says.

    huggingface_hub does so by itself for the uploads, not for the requests that are made through this.
    """
    for attempt in range(1, _TRIES + 1):
        try:
            return ask()
        except Exception as error:
            status, wait = _status(error), _retry_after(error)
            passing = status in TRANSIENT or (_is_network(error) and not _is_offline(error))
            if not passing or attempt == _TRIES or (wait or 0) > LONGEST_WAIT:
                raise
            wait = float(2 ** (attempt - 1)) if wait is None else wait
            what = f"answered {status}" if status else "did not answer"
            print(f"the hub {what}; trying again in {wait:.0f} s", file=sys.stderr)
            time.sleep(wait)
            after()
    raise AssertionError("unreachable")


@contextlib.contextmanager
def _explained(repository: str, secret: str) -> Iterator[None]:
    """Turn every failure into an error that says what to do; none keeps a cause, whose text could hold a token."""
    try:
        yield
    except HarnessError:
        raise
    except Exception as error:
        raise HubError(redact(_explanation(error, repository), secret)) from None


def _explanation(error: Exception, repository: str) -> str:
    cause = _cause(error)
    status, said = _status(cause), _said(cause)
    owner = repository.split("/")[0]
    words = {
        401: "the hub does not know this token, or it has expired: make one with write access and `hf auth login`, or "
        "set HF_TOKEN",
        402: f"the hub wants to be paid for this: see the plan and the storage of {owner}",
        403: f"this token may not write to {repository}: use one with write access to {owner}, or publish under a name "
        "of your own",
        404: f"the hub has no {repository}, or {owner} is no user or organization that this token sees",
        409: f"somebody else changes {repository} at the same time. {AGAIN}",
        412: f"somebody else changes {repository} at the same time. {AGAIN}",
        413: f"the hub does not take files of this size in {repository}",
        429: f"the hub asks for fewer requests{_later(cause)}. {AGAIN}",
    }
    if status is not None and (status in words or status >= 500):
        hint = words.get(status, f"the hub has a fault of its own; it may be over soon. {AGAIN}")
        return f"{repository}: the hub answered {status}{said}: {hint}"
    if status is not None:
        return f"{repository}: the hub answered {status}{said}. {AGAIN}"
    if _is_offline(cause):
        return f"{repository}: HF_HUB_OFFLINE is set; unset it to publish, or write to a folder with --dry-run"
    if _is_network(cause):
        return f"{repository}: the connection to the hub broke ({type(cause).__name__}: {cause}). {AGAIN}"
    return f"{repository}: the upload failed ({type(cause).__name__}: {cause}). {AGAIN}"


def _cause(error: BaseException) -> BaseException:
    """Return the hub's own error behind one that only says which file was being sent."""
    found: BaseException | None = error
    while found is not None:
        if _status(found) is not None or _is_network(found):
            return found
        found = found.__cause__ or found.__context__
    return error


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about; hf_xet's are builtin errors that have it in their text alone."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None and isinstance(error, (ConnectionError, RuntimeError)) and (told := _TOLD.search(str(error))):
        return int(told[1])
    return status if isinstance(status, int) else None


def _is_network(error: BaseException) -> bool:
    """Whether the connection failed, or brought something that is no answer of a hub."""
    # huggingface_hub 2 speaks through httpx2, a fork of the httpx that version 1 speaks through.
    package = type(error).__module__.partition(".")[0]
    named = package in ("httpx", "httpx2", "httpcore", "httpcore2") and _status(error) is None
    return named or isinstance(error, (ConnectionError, TimeoutError, json.JSONDecodeError))


def _is_offline(error: BaseException) -> bool:
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, OfflineModeIsEnabled)


def _retry_after(error: BaseException) -> float | None:
    """Return the seconds that the hub asks to wait: in its rate limit's own header, or in the standard one."""
    from huggingface_hub.utils import parse_ratelimit_headers

    headers = getattr(getattr(error, "response", None), "headers", {})
    limit = parse_ratelimit_headers(headers)
    if _status(error) == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    value = str(headers.get("retry-after", "")).strip()
    return float(value) if value.isdigit() else None


def _later(error: BaseException) -> str:
    wait = _retry_after(error)
    return f", and to wait {wait:.0f} s" if wait else ""


def _said(error: BaseException) -> str:
    message = getattr(error, "server_message", None)
    return f" ({' '.join(str(message).split())[:300]})" if message else ""


# --------------------------------------------------------------------------------------------------- quiet and patient


@contextlib.contextmanager
def hidden(secret: str) -> Iterator[None]:
    """Take the token out of every log record and warning while inside, whoever writes it and wherever it is shown."""
    made = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = made(*args, **kwargs)
        record.msg, record.args = redact(record.getMessage(), secret), None
        if record.exc_info:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)), secret)
        return record

    def show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
        text = warnings.formatwarning(redact(str(message), secret), category, filename, lineno)
        print(text, end="", file=sys.stderr)

    logging.setLogRecordFactory(factory)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        logging.setLogRecordFactory(made)


@contextlib.contextmanager
def _patient() -> Iterator[None]:
    """Let no request wait for ever, as huggingface_hub's own client does, and keep its bars out of log files."""
    import huggingface_hub
    from huggingface_hub.utils import _http, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    def client() -> Any:
        found = _http.default_client_factory()
        found.timeout = _SILENCE
        return found

    huggingface_hub.set_client_factory(client)
    silent = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if silent:
        disable_progress_bars()
    try:
        yield
    finally:
        if silent:
            enable_progress_bars()
        huggingface_hub.set_client_factory(_http.default_client_factory)
