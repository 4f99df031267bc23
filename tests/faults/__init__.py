"""The fault campaign: what the harness promises, held against seeded faults of every kind (``tox run -e faults``)."""
