"""What the published tutorial asks of a model: by workers and servers, and in the scripts of a card."""

from __future__ import annotations

from typing import Any

PROMPT = "Give me a short introduction to large language models."

CHAT: dict[str, Any] = {
    "messages": [{"role": "user", "content": PROMPT}],
    "temperature": 0.6,
    "top_p": 0.95,
    "top_k": 20,
}
"""The chat completion that a server is asked."""

MEMORY = [{"role": "system", "content": ""}, {"role": "user", "content": "Hey, are you conscious? Can you talk to me?"}]
"""The messages that are answered while the peak memory is taken."""
