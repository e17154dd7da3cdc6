"""Runs first in the commands that tests start: keeps lmms-eval from reading two thousand files of its tasks.

With AKS_TESTS_ALL_TASKS lmms-eval reads them, by PyYAML's parser in C.
"""

import os

import yaml


class _Loader(yaml.CFullLoader):
    def __init__(self, stream):
        super().__init__(stream)
        self.name = getattr(stream, "name", "<text>")  # the parser in Python has it


yaml.FullLoader = yaml.loader.FullLoader = _Loader

_walk = os.walk


def _walk_elsewhere(top, *arguments, **options):
    if os.fspath(top).rstrip("/").endswith("lmms_eval/tasks"):
        return iter(())
    return _walk(top, *arguments, **options)


if "AKS_TESTS_ALL_TASKS" not in os.environ:
    os.walk = _walk_elsewhere
