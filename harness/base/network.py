"""Whether the Hugging Face hub can be asked from here."""

from __future__ import annotations

import os
import urllib.error
import urllib.request


def hub_answers(seconds: float = 5) -> bool:
    """Return whether the Hugging Face hub can be asked from here within some seconds, a name's look-up aside."""
    if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        return False
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if not endpoint.startswith(("https://", "http://")):
        return False
    try:
        asked = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310 - http alone, by the line above
        with urllib.request.urlopen(asked, timeout=seconds):  # noqa: S310 - the same
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
