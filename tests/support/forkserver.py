"""A fork server: tests start Python in milliseconds, where importing PyTorch takes seconds.

``python(kind)`` is the path of a command that stands in for ``sys.executable``. A server has already imported
the libraries that this kind of command needs. It forks, and the fork runs the script with the caller's
streams, working directory and environment. Every fork imports the project's own modules itself.

What an interpreter or a library prints while it starts is not seen here, so every script has a test that
starts it by ``sys.executable``. The environment variable FORKSERVER_PYTHON becomes the ``sys.executable`` of
a fork, for scripts that start Python.
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
        "accelerate",
        "qwen_vl_utils",
        "transformers.models.qwen2.modeling_qwen2",
        "transformers.models.siglip.modeling_siglip",
        "transformers.models.qwen2_vl.modeling_qwen2_vl",
        "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl",
    ),
}

_servers: list[subprocess.Popen] = []


@functools.cache
def python(kind: str) -> str:
    """Start a server, which ends with this process, and return the path of its command.

    Args:
        kind: a key of ``KINDS``.
    """
    folder = Path(tempfile.mkdtemp(prefix="aks-tests-"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "socket"))
    listener.listen(100)
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(listener.fileno()), *KINDS[kind]],
        stdin=subprocess.PIPE,  # closes when this process ends
        stdout=subprocess.PIPE,  # no file, like the streams of the forks
        stderr=subprocess.PIPE,
        pass_fds=[listener.fileno()],
        env={
            **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            "OMP_NUM_THREADS": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),  # The library reads it on import.
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # Any other check leaves CUDA unusable in a fork.
        },
    )
    _servers.append(server)
    command = folder / "python"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "{__file__}" ask "{folder}/socket" "$@"\n')
    command.chmod(0o755)
    return str(command)


def ask(address: str, *arguments: str) -> int:
    """Let a fork run a Python command with these arguments; return its exit status."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        request = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        connection.sendall(json.dumps(request).encode() + b"\n")
        status = connection.recv(1)
    return status[0] if status else 255  # No status: the fork was killed.


def serve(listener: socket.socket, modules: tuple[str, ...]) -> None:
    """Import the modules, then fork for every connection, until standard input closes."""
    for name in modules:
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval"]:
        del sys.modules[name]  # It reads the environment on import. The libraries it imports stay loaded.
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
    """Run the requested command in this process, then end the process."""
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
    """Run ``python FIRST ARGUMENTS``: a script, ``-m module`` or ``-c code``."""
    target, *arguments = arguments if first in ("-m", "-c") else (first, *arguments)
    folder = {"-m": os.getcwd(), "-c": ""}.get(first, os.path.dirname(os.path.abspath(first)))
    python_path = list(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)))
    for customize in (Path(entry) / "sitecustomize.py" for entry in python_path):
        if customize.is_file():
            runpy.run_path(str(customize))
            break
    sys.path[:] = [folder, *python_path, *sys.path[1:]]
    sys.argv = ["-c" if first == "-c" else target, *arguments]
    if first == "-c":
        exec(target, {"__name__": "__main__"})
    elif first == "-m":
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(target, run_name="__main__")


if __name__ == "__main__":
    command, address, *others = sys.argv[1:]
    if command == "ask":
        sys.exit(ask(address, *others))
    serve(socket.socket(fileno=int(address)), tuple(others))
