import pytest

from sgr_diffusers.training.files import find_damage, seal_folder


@pytest.fixture
def sealed(tmp_path):
    folder = tmp_path / "sealed"
    (folder / "below").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12345678")
    (folder / "below/b.json").write_text("{}")
    seal_folder(folder)
    return folder


def test_a_whole_folder_is_known_as_whole(sealed):
    assert find_damage(sealed) is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "a.bin").write_bytes(b"1234"), "a.bin has 4 bytes instead of 8"),
        (lambda folder: (folder / "a.bin").write_bytes(b"12345679"), "content of a.bin"),
        (lambda folder: (folder / "below/b.json").unlink(), "below/b.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"files": {"a.b'), "manifest.json cannot be read"),
    ],
)
def test_damage_is_named(sealed, damage, message):
    damage(sealed)
    assert message in find_damage(sealed)
