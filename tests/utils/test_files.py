import json

import pytest

from sgr_diffusers.utils.files import RECORD_FILE, whole_folder


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
