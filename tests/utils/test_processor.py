import pytest

from sgr_diffusers.reconstruction.volume import load_pipeline
from sgr_diffusers.utils import processor
from sgr_diffusers.utils.processor import has_fast_bfloat16


@pytest.fixture
def cpu_info(tmp_path, monkeypatch):
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 amx_bf16\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\n", False),
        ("processor : 0\nFeatures : fp asimd bf16\n", True),
        ("processor : 0\n", None),
    ],
)
def test_flags_of_the_processor(cpu_info, text, expected):
    cpu_info.write_text(text)
    assert has_fast_bfloat16() is expected


def test_no_answer_where_the_system_has_no_such_file(cpu_info):
    assert has_fast_bfloat16() is None


def test_bfloat16_is_warned_of_where_it_is_slow(cpu_info):
    cpu_info.write_text("flags : fpu avx2\n")
    with pytest.warns(UserWarning, match="`dtype` bfloat16 is much slower than float32 on this processor"):
        load_pipeline("general", "cpu", "bfloat16")
    cpu_info.write_text("flags : fpu avx512_bf16\n")
    load_pipeline("general", "cpu", "bfloat16")
