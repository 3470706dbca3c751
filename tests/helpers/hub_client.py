"""Clients of the local Hub in processes of their own: its address must be known before huggingface_hub is imported."""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

# Of the owner of all repositories, of somebody who may read, and of nobody.
OWNER, READER, WRONG = "hf_owner" + "O" * 28, "hf_reader" + "R" * 27, "hf_wrong" + "W" * 28

ROOT = Path(__file__).parents[2]
PROLOGUE = """
import json, socket, sys, warnings
_connect = socket.socket.connect
_resolve = socket.getaddrinfo
LOCAL = ({local})
def connect(self, address, *rest):
    if self.family != socket.AF_UNIX and address[0] not in LOCAL:
        raise OSError(f"a test reached for {{address}}")
    return _connect(self, address, *rest)
def getaddrinfo(host, *rest, **more):
    if host not in LOCAL:
        raise OSError(f"a test looked up {{host}}")
    return _resolve(host, *rest, **more)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""
LOOPBACK, NO_NETWORK = "'127.0.0.1', 'localhost'", ""


def environment(home, endpoint=None, token=None, **more):
    """Variables of a client's process: nothing of ours, a home of its own."""
    keep = {key: os.environ[key] for key in ("PATH", "LANG", "OMP_NUM_THREADS") if key in os.environ}
    given = {"HF_ENDPOINT": endpoint, "HF_TOKEN": token, **more}
    return {
        **keep,
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **{key: value for key, value in given.items() if value is not None},
    }


def run_client(code, home, *, endpoint=None, token=None, path=(ROOT,), check=True, **variables):
    """Run code in a process that can reach this machine only, or nothing without `endpoint`.

    Args:
        code: Python.
        home: folder for the process's caches.
        endpoint: address of the local Hub.
        token: of the user.
        path: what comes first in `sys.path`; a `BareEnvironment` instead of all others.
        check: whether the process must end well.
        variables: of the environment.
    """
    home.mkdir(parents=True, exist_ok=True)
    prologue = PROLOGUE.format(local=LOOPBACK if endpoint else NO_NETWORK)
    if isinstance(path, BareEnvironment):  # -S: no site-packages but its own
        options, paths = ["-I", "-S"], f"sys.path.append({str(path.folder)!r})"
    else:
        options, paths = ["-I"], f"sys.path[:0] = {[str(one) for one in path]!r}"
    arguments = [*options, "-c", f"{prologue}\n{paths}\n{code}"]
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment(home, endpoint, token, **variables),
        capture_output=True,
        text=True,
        timeout=900,
        cwd=home,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


class BareEnvironment:
    """A folder that stands in for site-packages and holds a few distributions and what they require, nothing else."""

    def __init__(self, folder, names=("torch", "diffusers", "monai", "numpy")):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True)
        self.distributions = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            try:
                found = distribution(name)
            except PackageNotFoundError:  # for another platform or Python
                continue
            if found.name.lower() in self.distributions:
                continue
            self.distributions.add(found.name.lower())
            wanted = [Requirement(text) for text in found.requires or []]
            waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
            for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
                link = self.folder / top
                if not link.exists():
                    link.symlink_to(found.locate_file(top))


class Worker:
    """A process that has imported everything once and runs pieces of code, one after the other, until it is closed."""

    LOOP = """
import contextlib, io, traceback
import torch, diffusers, huggingface_hub, sgr_diffusers
torch.set_num_threads(1)
for line in sys.stdin:
    out, names = io.StringIO(), {"__name__": "client"}
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            exec(compile(json.loads(line), "client", "exec"), names)
            error = None
        except BaseException as raised:
            traceback.print_exc()
            error = [[], ""]
            while raised is not None:
                error[0] += [one.__name__ for one in type(raised).__mro__]
                error[1] += str(raised) + "\\n"
                raised = raised.__cause__
    print(json.dumps({"error": error, "printed": out.getvalue(), "result": names.get("result")}), flush=True)
"""

    def __init__(self, home, endpoint):
        home.mkdir(parents=True, exist_ok=True)
        code = PROLOGUE.format(local=LOOPBACK) + f"sys.path[:0] = {[str(ROOT)]!r}\n"
        self.printed = ""
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-c", code + self.LOOP],
            env=environment(home, endpoint),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=home,
        )

    def run(self, code):
        """What the code left in `result`; an error of it is an AssertionError here."""
        answer = self._send(code)
        assert answer["error"] is None, answer["printed"]
        return answer["result"]

    def fail(self, code):
        """Names of the classes of the error that the code ends in, and of its causes, and their texts."""
        answer = self._send(code)
        assert answer["error"] is not None, f"no error:\n{answer['printed']}"
        return answer["error"]

    def _send(self, code):
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        self.printed += answer["printed"] + str(answer["error"])
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=300)
        self.process.stdout.close()
