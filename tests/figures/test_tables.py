import pytest

from sgr_diffusers.figures.tables import format_table


def test_tables_align_and_show_what_is_missing_as_a_dash():
    rows = [
        {"class": "meniscus", "mm^3": "12", "share": "0.50"},
        {"class": "bone", "mm^3": "1200", "share": float("nan")},
        {"class": "-", "mm^3": None, "share": "0.25"},
    ]
    assert format_table(rows).splitlines() == [
        "class     mm^3  share",
        "--------  ----  -----",
        "meniscus    12   0.50",
        "bone      1200      -",
        "-            -   0.25",
    ]
    assert format_table(rows, markdown=True).splitlines()[1:3] == [
        "| -------- | ---: | ----: |",
        "| meniscus |   12 |  0.50 |",
    ]
    with pytest.raises(ValueError, match="at least one row"):
        format_table([])
