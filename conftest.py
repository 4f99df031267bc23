"""Loads the harness's plugin for every pytest run in this folder."""

pytest_plugins = ["harness.plugin.plugin"]
