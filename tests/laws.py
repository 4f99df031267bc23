"""How many examples a law is tried with: as many as it needs, and fewer of them in the quick profile."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

FEW = 10


def register() -> None:
    """Let hypothesis know the profiles; ``--hypothesis-profile quick`` chooses the second one.

    Neither has a deadline: other work may slow this machine down, and that is no failure of a law.
    """
    settings.register_profile("whole", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.register_profile("quick", settings.get_profile("whole"), max_examples=FEW)
    settings.load_profile("whole")


def examples(count: int, *, quick: int = FEW, filters: bool = False) -> settings:
    """Return settings of so many examples where one takes long, and in the quick profile of at most ``quick``.

    ``filters`` is of laws whose examples are drawn from patterns that refuse most of them.
    """
    most = settings().max_examples
    refused = [HealthCheck.filter_too_much] if filters else []
    checks = [*settings().suppress_health_check, *refused]
    return settings(max_examples=min(count, quick if most == FEW else most), suppress_health_check=checks)
