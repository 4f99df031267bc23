"""Runs inside an environment, one process a job: the only place that imports torch and its friends."""
