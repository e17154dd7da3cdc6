"""A fork server: tests start Python in milliseconds where importing PyTorch or lmms-eval takes many seconds.

``python(kind)`` is the path of a command that takes the place of ``sys.executable``. A server that has
imported what this kind of command imports forks, and the fork runs the script with the caller's streams,
working directory and environment. Every fork imports the project's own modules anew. What an interpreter or
a library prints while it starts does not appear, hence every script has a test that starts it by
``sys.executable``. The environment variable FORKSERVER_PYTHON becomes the ``sys.executable`` of a fork, for
scripts that start Python.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

TORCH = ("numpy", "torch", "av", "decord", "PIL.Image")
KINDS = {
    "torch": (*TORCH, "matplotlib.pyplot", "pyarrow.parquet"),
    "lavis": (*TORCH, "lavis.models"),
    "lmms_eval": (
        *TORCH,
        "lmms_eval.__main__",
        "qwen_vl_utils",
        "transformers.models.qwen2_vl.modeling_qwen2_vl",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    ),
}

_servers: list[subprocess.Popen] = []


@functools.cache
def python(kind: str) -> str:
    """The command; its server ends with this process.

    Args:
        kind: a key of ``KINDS``.
    """
    folder = Path(tempfile.mkdtemp(prefix="aks-tests-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(100)
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(listener.fileno()), *KINDS[kind]],
        stdin=subprocess.PIPE,  # which closes when this process ends
        stdout=subprocess.PIPE,  # like the forks' streams, no file
        stderr=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),  # read when the library is imported
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # CUDA asked otherwise cannot be used in a fork
        },
    )
    _servers.append(server)
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" ask "{folder}/socket" "$@"\n')
    command.chmod(0o755)
    return str(command)


def ask(address: str, *arguments: str) -> int:
    """Have the arguments of a Python command run by a fork; its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        connection.sendall(json.dumps(request).encode() + b"\n")
        status = connection.recv(1)
    return status[0] if status else 255  # the fork was killed


def serve(listener: socket.socket, modules: tuple[str, ...]) -> None:
    """Import the modules, then fork for every connection until standard input closes."""
    for name in modules:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval"]:
        del sys.modules[name]  # it reads the environment while it is imported; what it imports stays
    gc.collect()
    gc.freeze()
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            run(connection)
        connection.close()
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    shutil.rmtree(Path(listener.getsockname()).parent, ignore_errors=True)


def run(connection: socket.socket) -> None:
    """Run what is asked for in this process, which ends with it."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    request = json.loads(connection.makefile("rb").readline())
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.executable = os.environ.get("FORKSERVER_PYTHON", sys.executable)
    threading.Thread(target=end_with, args=(connection,), daemon=True).start()
    status = 1
    try:
        execute(*request["arguments"])
        status = 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            status = end.code or 0
        else:
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # as at an interpreter's end, which would free gigabytes object by object
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    connection.sendall(bytes([status & 255]))
    os._exit(status)


def end_with(connection: socket.socket) -> None:
    """End this process when the asking one does, killed by a timeout for instance."""
    connection.recv(1)
    os._exit(255)


def execute(first: str, *arguments: str) -> None:
    """``python FIRST ARGUMENTS``: a script, ``-m module`` or ``-c code``."""
    name = arguments[0] if first in ("-m", "-c") else first
    rest = arguments[1:] if first in ("-m", "-c") else arguments
    folder = {"-m": os.getcwd(), "-c": ""}.get(first, os.path.dirname(os.path.abspath(first)))
    more = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    for customize in (Path(place) / "sitecustomize.py" for place in more):
        if customize.is_file():
            runpy.run_path(str(customize))
            break
    sys.path[:] = [folder, *more, *sys.path[1:]]
    sys.argv = ["-c" if first == "-c" else name, *rest]
    if first == "-c":
        exec(name, {"__name__": "__main__"})
    elif first == "-m":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")


if __name__ == "__main__":
    command, where, *others = sys.argv[1:]
    if command == "ask":
        sys.exit(ask(where, *others))
    serve(socket.socket(fileno=int(where)), tuple(others))
