"""What commands do first that tests start: lmms-eval does not read the two thousand files of its own tasks.

Where AKS_TESTS_ALL_TASKS is set it does, by PyYAML's parser in C.
"""

import os

import yaml


class _Loader(yaml.CFullLoader):
    def __init__(self, stream):
        super().__init__(stream)
        self.name = getattr(stream, "name", "<text>")  # as of the one in Python


yaml.FullLoader = yaml.loader.FullLoader = _Loader

_walk = os.walk


def _walk_elsewhere(top, *arguments, **options):
    if os.fspath(top).rstrip("/").endswith("lmms_eval/tasks"):
        return iter(())
    return _walk(top, *arguments, **options)


if "AKS_TESTS_ALL_TASKS" not in os.environ:
    os.walk = _walk_elsewhere
