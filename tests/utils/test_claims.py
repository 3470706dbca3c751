"""Units of work are done once, by processes that come, go and are killed."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from sgr_diffusers.utils import claims
from sgr_diffusers.utils.claims import CLAIMS_FOLDER, Part, exclusive, hand_out, remove_claims
from sgr_diffusers.utils.files import whole_file

N_UNITS = 24


def work(folder, dies_in=None, dies_after_result=False):
    """Do units, and note each beginning in a file of this process, which may be killed in one of its units."""
    units = hand_out(range(N_UNITS), folder, str, lambda unit: (folder / f"{unit}.txt").exists())
    with (folder / f"begun-{os.getpid()}").open("a", buffering=1) as notes:
        for number, unit in enumerate(units):
            notes.write(f"{unit}\n")
            time.sleep(0.01)
            if number == dies_in and not dies_after_result:
                os.kill(os.getpid(), signal.SIGKILL)
            with whole_file(folder / f"{unit}.txt") as file:
                file.write_text(str(unit**2))
            if number == dies_in:
                os.kill(os.getpid(), signal.SIGKILL)


def begun(folder):
    return [int(line) for file in folder.glob("begun-*") for line in file.read_text().splitlines()]


def start(folder, **arguments):
    process = multiprocessing.get_context("fork").Process(target=work, args=(folder,), kwargs=arguments)
    process.start()
    return process


def results(folder):
    return {int(file.stem): file.read_text() for file in Path(folder).glob("[0-9]*.txt")}


EXPECTED = {unit: str(unit**2) for unit in range(N_UNITS)}


def test_processes_share_the_units_and_do_none_twice(tmp_path):
    processes = [start(tmp_path) for _ in range(3)]
    work(tmp_path)
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert sorted(begun(tmp_path)) == list(range(N_UNITS)) and results(tmp_path) == EXPECTED
    assert not list((tmp_path / CLAIMS_FOLDER).iterdir())
    remove_claims(tmp_path)
    assert not (tmp_path / CLAIMS_FOLDER).exists()


def test_units_of_killed_processes_are_taken_over(tmp_path):
    processes = [start(tmp_path, dies_in=k % 3, dies_after_result=k % 2 == 0) for k in range(5)]
    work(tmp_path)
    for process in processes:
        process.join(60)
    n_killed = sum(process.exitcode == -signal.SIGKILL for process in processes)
    assert {process.exitcode for process in processes} <= {0, -signal.SIGKILL} and results(tmp_path) == EXPECTED
    assert len(begun(tmp_path)) - N_UNITS <= n_killed  # none but those that were being done when their process died
    remove_claims(tmp_path)
    assert not (tmp_path / CLAIMS_FOLDER).exists()


def test_a_claim_of_another_machine_is_left_alone_until_its_lease_is_over(tmp_path, monkeypatch):
    units = hand_out([7], tmp_path, str, lambda unit: False)
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "elsewhere")
        assert next(units) == 7
        (claim,) = (tmp_path / CLAIMS_FOLDER).iterdir()
    entered = []

    def wait_for_it(seconds):
        entered.append(seconds)
        os.utime(claim, (0, time.time() - claims.LEASE_SECONDS - 1))

    monkeypatch.setattr("time.sleep", wait_for_it)
    with exclusive(tmp_path, "7"):
        assert len(entered) == 1  # the first time, the claim was held
        remove_claims(tmp_path)
        assert len(list((tmp_path / CLAIMS_FOLDER).iterdir())) == 2
    units.close()
    remove_claims(tmp_path)
    assert not (tmp_path / CLAIMS_FOLDER).exists()


def test_a_held_claim_is_touched(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "LEASE_SECONDS", 0.2)
    with exclusive(tmp_path, "work"):
        (claim,) = (tmp_path / CLAIMS_FOLDER).iterdir()
        first = claim.stat().st_mtime_ns
        deadline = time.monotonic() + 60
        while claim.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_parts():
    assert Part.parse("2/3").first([0, 1, 2, 3, 4]) == [1, 4, 0, 2, 3]
    array = {"SLURM_ARRAY_TASK_ID": "6", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_MAX": "10"}
    assert Part.of_array(array | {"SLURM_ARRAY_TASK_STEP": "4"}) == Part(2, 3)
    assert Part.of_array(array) is None and Part.of_array({}) is None
    for text in ("0/2", "3/2", "1", "a/b", "-1/2"):
        with pytest.raises(ValueError, match="`part` must be K/N"):
            Part.parse(text)
