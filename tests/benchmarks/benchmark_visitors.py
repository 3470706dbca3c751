"""Lets many visitors use a server of `sgr app` at once, and prints what they got and what the server held.

    python tests/benchmarks/benchmark_visitors.py --model MODEL --visitors 20 --minutes 10

Each visitor runs the bundled case again and again as a browser does: joins the queue, waits for its turn, reads the
result. Prints the numbers of runs that ended with a result, were turned away or failed, how long a visitor waited, and
the memory of the server and its processes at the beginning and at the end (the networks of a run's process included).
"""

import contextlib
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter

import httpx
import psutil

from sgr_diffusers.pretrained import PRETRAINED
from sgr_diffusers.utils.options import OptionParser, ScriptHelp

FIRST_SECONDS = 300  # in which a server on a busy machine must answer


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_for(address: str) -> dict:
    """Configuration of the page, once the server answers."""
    end = time.monotonic() + FIRST_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{address}/config", timeout=30).raise_for_status().json()
        time.sleep(0.5)
    raise TimeoutError(f"the server at {address} did not answer in {FIRST_SECONDS} s")


def run_event(config: dict, n_steps: int) -> tuple[int, list]:
    """Number of the event that reconstructs, and the first values of its fields, with few steps."""
    components = {component["id"]: component for component in config["components"]}
    (event,) = (event for event in config["dependencies"] if len(event["inputs"]) > 10)
    values = []
    for number in event["inputs"]:
        properties = components[number]["props"]
        values.append(n_steps if properties.get("elem_id") == "sgr-steps" else properties.get("value"))
    return event["id"], values


class Visitor(threading.Thread):
    """Runs the bundled case until the time is over."""

    def __init__(self, address: str, event: tuple[int, list], end: float) -> None:
        """Begin a session."""
        super().__init__(daemon=True)
        self._address, self._event, self._end = f"{address}/gradio_api/queue", event, end
        self.outcomes: Counter = Counter()
        self.seconds: list[float] = []

    def run(self) -> None:
        """Run again and again, each time as a new visitor."""
        while time.monotonic() < self._end:
            start = time.monotonic()
            outcome = self._reconstruct()
            self.outcomes[outcome] += 1
            if outcome == "result":
                self.seconds.append(time.monotonic() - start)
            else:
                time.sleep(1)

    def _reconstruct(self) -> str:
        number, values = self._event
        session = uuid.uuid4().hex
        body = {"data": values, "fn_index": number, "session_hash": session, "event_data": None, "trigger_id": None}
        with httpx.Client(timeout=None) as client:
            joined = client.post(f"{self._address}/join", json=body)
            if joined.status_code == 503:
                return "turned away"
            if joined.is_error:
                return f"HTTP {joined.status_code}"
            with client.stream("GET", f"{self._address}/data", params={"session_hash": session}) as stream:
                for line in stream.iter_lines():
                    if not line.startswith("data:"):
                        continue
                    message = json.loads(line.removeprefix("data:"))
                    if message["msg"] == "process_completed":
                        status = str((message["output"].get("data") or ["", ""])[1])
                        is_done = message["success"] and "sgr-done" in status
                        return "result" if is_done else f"failed: {message['output'].get('error') or status}"
        return "no answer"


def memory(process: psutil.Process) -> float:
    """Resident memory of a process and its children in MB."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += one.memory_info().rss
    return total / 1e6


def main() -> None:
    """Run and print."""
    parser = OptionParser(description=__doc__, formatter_class=ScriptHelp)
    parser.add_argument("--model", default=str(PRETRAINED), help="folder of the pipeline")
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--steps", type=int, default=2, help="steps of each run")
    args = parser.parse_args()
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "sgr_diffusers.cli", "app", "--model", args.model, "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            event, process = run_event(wait_for(address), args.steps), psutil.Process(server.pid)
            first = Visitor(address, event, 0)
            print(f"first run: {first._reconstruct()}", flush=True)
            held = [memory(process)]
            visitors = [Visitor(address, event, time.monotonic() + 60 * args.minutes) for _ in range(args.visitors)]
            for visitor in visitors:
                visitor.start()
            while any(visitor.is_alive() for visitor in visitors):
                time.sleep(1)
                held.append(memory(process))
            outcomes = sum((visitor.outcomes for visitor in visitors), Counter())
            seconds = [one for visitor in visitors for one in visitor.seconds]
            print(f"{args.visitors} visitors in {args.minutes:g} minutes: {dict(outcomes)}")
            print(f"seconds a run, with the wait: median {statistics.median(seconds):.1f}, at most {max(seconds):.1f}")
            quarter = max(len(held) // 4, 1)
            means = [statistics.mean(part) for part in (held[1 : 1 + quarter], held[-quarter:])]
            print(
                f"MB of memory: {means[0]:.0f} in the first quarter, {means[1]:.0f} in the last, peak {max(held):.0f}"
            )
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
