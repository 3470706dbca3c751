import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

POOL = """
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from utils.processes import end_with_parent

def report(_):
    time.sleep(0.3)
    return os.getpid()

if __name__ == "__main__":
    with ProcessPoolExecutor(2, get_context(sys.argv[1]), end_with_parent) as pool:
        print(*set(pool.map(report, range(4))), flush=True)
        time.sleep(600)
"""
LAUNCHED = """
import subprocess, sys, time
from utils.processes import end_with_parent

if len(sys.argv) > 1:
    worker = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    worker.stdout.readline()
    print(worker.pid, flush=True)
else:
    end_with_parent()
    print("ready", flush=True)
time.sleep(600)
"""


def is_alive(process_id):
    try:
        state = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(("code", "argument"), [(POOL, "fork"), (POOL, "spawn"), (LAUNCHED, "launcher")])
def test_workers_end_when_their_parent_is_killed(code, argument, tmp_path, light_environment):
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), argument]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=light_environment) as parent:
        workers = [int(number) for number in parent.stdout.readline().split()]
        assert workers and all(map(is_alive, workers))
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 30
    while any(map(is_alive, workers)):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.05)
