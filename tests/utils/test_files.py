import json
import subprocess
import sys

import pytest

from sgr_diffusers.utils.files import (
    RECORD_FILE,
    check_replaceable,
    is_partial,
    recover_all,
    remove_folder,
    rename_folder,
    replaced_folder,
    whole_file,
    whole_folder,
    write_json,
)


def write(path, text="new", overwrite=False):
    with whole_folder(path, overwrite) as folder:
        (folder / "volumes.csv").write_text(text)
        assert path.exists() is overwrite, "nothing may be under the name before all is written"


def test_folder_appears_whole_and_lists_its_files(tmp_path):
    output = tmp_path / "new_parent" / "out"
    write(output)
    assert sorted(entry.name for entry in output.iterdir()) == [RECORD_FILE, "volumes.csv"]
    assert json.loads((output / RECORD_FILE).read_text()) == {"files": [RECORD_FILE, "volumes.csv"]}
    assert [entry.name for entry in output.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_behind_after_an_error(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "new_parent" / "out") as folder:
        (folder / "half").write_text("written")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_overwriting_replaces_an_earlier_run_only_when_the_new_one_is_whole(tmp_path):
    output = tmp_path / "out"
    write(output, "old")
    with pytest.raises(FileExistsError, match="already there"):
        write(output)
    with pytest.raises(RuntimeError), whole_folder(output, overwrite=True) as folder:
        (folder / "other.csv").write_text("half")
        raise RuntimeError
    assert (output / "volumes.csv").read_text() == "old"
    write(output, "new", overwrite=True)
    assert (output / "volumes.csv").read_text() == "new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_files_of_somebody_else_are_never_replaced(tmp_path):
    output = tmp_path / "out"
    write(output)
    (output / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        write(output, overwrite=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="not a folder"):
        write(tmp_path / "file", overwrite=True)
    assert (output / "notes.txt").read_text() == (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "volumes.csv").exists()


def test_a_renamed_folder_replaces_the_old_one_whole(tmp_path):
    for name, content in (("old", "1"), ("new", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
    rename_folder(tmp_path / "new", tmp_path / "old")
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["old", "old/2"]
    remove_folder(tmp_path / "old")
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_that_fails_leaves_the_old_folder(tmp_path):
    with replaced_folder(tmp_path / "weights") as folder:
        (folder / "1").touch()
    with pytest.raises(KeyError), replaced_folder(tmp_path / "weights") as folder:
        (folder / "2").touch()
        raise KeyError
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == ["weights", "weights/1"]


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "new_parent" / "image.nii.gz"
    with whole_file(path) as partial:
        partial.write_text("first")
        assert is_partial(partial) and partial.name == path.name and not path.exists()
    with pytest.raises(KeyboardInterrupt), whole_file(path) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "first" and not is_partial(path)
    assert list(path.parent.iterdir()) == [path]


def test_json_is_written_whole_also_where_a_value_is_unknown_to_it(tmp_path):
    write_json(tmp_path / "a.json", {"path": tmp_path, "n": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"path": str(tmp_path), "n": 1}


KILLED = """
import os, signal, sys
from utils import files

def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(files, sys.argv[2], killed)
with files.whole_folder(sys.argv[1], overwrite=True) as folder:
    (folder / "volumes.csv").write_text("newer")
"""


@pytest.mark.parametrize(("function", "expected"), [("_list_files", "old"), ("synchronise", "old")])
def test_what_a_killed_run_leaves_is_tidied_up_by_the_next(tmp_path, light_environment, function, expected):
    output = tmp_path / "out"
    write(output, "old")
    subprocess.run([sys.executable, "-c", KILLED, str(output), function], env=light_environment)
    assert len(list(tmp_path.iterdir())) == 2
    check_replaceable(output, overwrite=True)
    assert list(tmp_path.iterdir()) == [output] and (output / "volumes.csv").read_text() == expected


def test_a_result_set_aside_by_a_killed_run_comes_back(tmp_path):
    output = tmp_path / "out"
    write(output, "old")
    output.rename(tmp_path / ".out.previous")  # killed before the new one took its name
    with pytest.raises(FileExistsError, match="already there"):
        write(output)
    assert (output / "volumes.csv").read_text() == "old"
    write(tmp_path / "other", "older")
    (tmp_path / "other").rename(tmp_path / ".out.previous")  # killed after it
    (tmp_path / ".out.0123.partial").mkdir()
    recover_all(tmp_path)
    assert list(tmp_path.iterdir()) == [output] and (output / "volumes.csv").read_text() == "old"


def test_what_another_run_is_writing_is_left_alone(tmp_path):
    with whole_folder(tmp_path / "out") as first:
        (first / "volumes.csv").write_text("first")
        with pytest.raises(KeyError), whole_folder(tmp_path / "out"):
            raise KeyError
        recover_all(tmp_path)
        assert first.exists()
    assert (tmp_path / "out" / "volumes.csv").read_text() == "first"
