"""A Python that has imported torch already: it forks for every command, which saves 2 s each.

A command has its own arguments, folder, environment, stdin, stdout and stderr, and finds what was installed
since the last one. Only torch is shared: tokenzoo and its plugins are imported by each command anew.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path
from types import ModuleType

LARGEST = 1 << 20  # bytes of a command with its environment


def call(at: str, arguments: list[str]) -> int:
    """Run one command as `python *arguments` would; returns its exit code."""
    asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(at)
        socket.send_fds(line, [json.dumps(asked).encode()], [0, 1, 2])
        line.shutdown(socket.SHUT_WR)
        return int(line.recv(8) or b"1")  # nothing: the command was killed


def serve(at: str) -> None:
    """Fork for each command, one after the other, until this process is ended."""
    for name in ("torch", "torch._dynamo"):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(at)
        server.listen()
        while True:
            line, _ = server.accept()
            with line:
                if os.fork() == 0:
                    answer(line)


def answer(line: socket.socket) -> None:
    """Be the command, tell its exit code, and end."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, files, *_ = socket.recv_fds(line, LARGEST, 3)
    while more := line.recv(LARGEST):
        text += more
    asked = json.loads(text)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    code = 0
    try:
        python(asked["arguments"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    line.sendall(str(code).encode())
    os._exit(code)


def python(arguments: list[str]) -> None:
    """Run `-c CODE`, `-m MODULE`, `-` or a file, with the arguments after it."""
    importlib.invalidate_caches()
    first, *rest = arguments
    code = rest.pop(0) if first == "-c" else sys.stdin.read() if first == "-" else None
    sys.path[0] = "" if first.startswith("-") else str(Path(first).parent.resolve())
    if first == "-m":
        name = rest.pop(0)
        sys.argv = [name, *rest]
        runpy.run_module(name, run_name="__main__", alter_sys=True)
        return
    sys.argv = [first, *rest]
    if code is None:
        runpy.run_path(first, run_name="__main__")
    else:
        sys.modules["__main__"] = ModuleType("__main__")
        exec(code, vars(sys.modules["__main__"]))


if __name__ == "__main__":
    at, *given = sys.argv[1:]
    if given:
        sys.exit(call(at, given))
    serve(at)
