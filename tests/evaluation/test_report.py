"""The report: its files are there, and every number in it is one of the tables."""

import csv
import html
import re

import numpy as np
import pandas as pd
import pytest

from sgr_diffusers import cli
from sgr_diffusers.evaluation.plan import EvaluationPlan
from sgr_diffusers.evaluation.table1 import (
    COLUMNS,
    PAPER,
    check_claims,
    read_table1,
    table1_latex,
    table1_markdown,
    write_table1,
)
from tests.helpers.evaluation_results import HandMade, labels

TEAR = [{"type": "meniscus_tear"}]


def results_folder(folder, data="by hand"):
    plan = EvaluationPlan((4.0, 16.0), rr_samples=2, ablation_strengths=(0.01,), rr_curve_slices=1, rr_curve_samples=4)
    made = HandMade(folder, plan, data)
    full = {"A": labels(one=range(6), two=[20, 21]), "B": labels(one=[1, 2], two=[8])}
    for scan, findings in (("A", TEAR), ("B", ())):
        more = {"without_finding": labels(one=range(8), two=[20, 21])} if findings else {}
        made.reference(
            scan,
            0,
            full[scan],
            full[scan],
            findings,
            example=scan == "A",
            second_fully_sampled=labels(one=[0]),
            **more,
        )
        for acceleration in (4.0, 16.0):
            bounds = [(labels(one=[0, 1]), labels(one=range(7))), (labels(two=[20]), labels(two=[20, 21, 8]))]
            made.guided(scan, 0, bounds, acceleration, second=bounds)
            maps = [labels(one=[1], two=[8]), labels(one=[1, 2, 3])]
            made.samples(scan, 0, maps, acceleration, second=maps)
        made.guided(scan, 0, bounds, 16.0, strength=0.01, second=bounds)
        made.samples(scan, 0, maps, 16.0, first=2, second=maps)
    return made.finish()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    results = results_folder(folder / "results")
    assert cli.main(["report", str(results), "--output", str(folder / "out"), "--traceback"]) == 0
    return folder / "out"


def test_files_are_there(report):
    names = {path.name for path in report.iterdir()}
    tables = {"scores", "differences", "growth", "rr_curve", "equal_budget", "findings", "volumes", "costs", "claims"}
    figures = {"3_bounds", "4_boundaries", "5_scores", "6_ablation", "7_samples", "8_coverage"}
    assert names == {
        *(f"{name}.csv" for name in (*tables, "table1")),
        *(f"figure{name}.png" for name in figures),
        *("table1.md", "table1.tex", "report.html", "settings.json"),
    }


def test_table1_has_exactly_its_columns(report):
    with open(report / "table1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert [(row["acceleration"], row["method"], row["reference"]) for row in rows[:3]] == [
        ("4.0", "SGR", "fully_sampled"),
        ("4.0", "RR", "fully_sampled"),
        ("16.0", "SGR", "fully_sampled"),
    ]
    assert float(rows[0]["recall_upper"]) == 1.0 and rows[0]["n_scans"] == "2"


def rounded(values):
    """All ways in which a report writes a number."""
    texts = set()
    for value in values:
        if isinstance(value, (int, float, np.number)) and not pd.isna(value):
            texts |= {f"{value:.{digits}f}" for digits in range(5)}
            texts |= {f"{value:g}", f"{value:.4g}", f"{value * 100:.0f}", f"{value:.1f}"}
    return texts


def numbers_of(text):
    return re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", text.replace("−", "-"))


def test_no_number_in_the_report_is_not_in_the_tables(report):
    values = [value for path in report.glob("*.csv") for row in pd.read_csv(path).to_numpy() for value in row]
    claims = set(numbers_of((report / "claims.csv").read_text()))
    allowed = rounded(values) | claims | rounded([2])  # as what a backward pass counts
    page = (report / "report.html").read_text(encoding="utf-8")
    body = page[page.index("<h2>Table 1") : page.index("<h2>Settings")]
    cells = re.findall(r"<td[^>]*>(.*?)</td>", re.sub(r'src="[^"]*"', "", body))
    found = {number for cell in cells for number in numbers_of(html.unescape(cell))}
    assert len(found) > 30
    assert found <= allowed
    for name in ("table1.md", "table1.tex"):
        text = (report / name).read_text()
        text = text.split("\\midrule", 1)[-1]
        assert set(numbers_of(re.sub(r"\|[ :|-]*\|\n", "", text))) <= allowed


def test_the_page_needs_nothing_but_itself(report):
    page = (report / "report.html").read_text(encoding="utf-8")
    assert "http" not in page and page.count("data:image/png;base64,") == 6
    assert "units of work are not done" not in page
    assert "Table 1" in page and "by hand" in page


def test_papers_numbers_stand_beside_ours_for_its_data_only(report, tmp_path):
    assert "paper" not in (report / "table1.md").read_text()
    folder = results_folder(tmp_path / "results", data="SKM-TEA")
    assert cli.main(["report", str(folder), "--output", str(tmp_path / "out"), "--traceback"]) == 0
    text = (tmp_path / "out/table1.md").read_text()
    assert "SGR, paper" in text and f"{PAPER[16.0, 'RR'][0]:.3f}" in text and "8x" not in text
    assert "SGR, paper" in (tmp_path / "out/report.html").read_text()
    assert len(read_table1(tmp_path / "out/table1.csv")) == 8  # ours alone


def test_table_of_a_csv_file_on_the_screen(report, capsys):
    assert cli.main(["report", str(report / "table1.csv")]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == (report / "table1.md").read_text().strip()
    assert printed.startswith("| acc. | method |")


def test_a_report_is_replaced_only_if_asked(report, tmp_path, capsys):
    folder = results_folder(tmp_path / "results")
    assert cli.main(["report", str(folder), "--output", str(report)]) == 2
    assert "already there" in capsys.readouterr().err
    assert cli.main(["report", str(folder)]) == 2
    assert "--output is needed" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "x")]) == 2
    assert "not a results folder" in capsys.readouterr().err


def test_csv_round_trip_and_what_it_refuses(tmp_path):
    row = dict(zip(COLUMNS, (4.0, "SGR", "manual", 1 / 3, float("nan"), 0.5, 0.9, 30.123, 16), strict=True))
    write_table1(tmp_path / "table1.csv", [row])
    found = read_table1(tmp_path / "table1.csv")[0]
    assert found["precision_lower"] == 1 / 3 and np.isnan(found["recall_upper"])
    assert "| -" in table1_markdown([found]) and "--" in table1_latex([found])
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="must have the columns"):
        read_table1(tmp_path / "other.csv")
    (tmp_path / "bad.csv").write_text((tmp_path / "table1.csv").read_text().replace("0.5", "half"))
    with pytest.raises(ValueError, match="no number"):
        read_table1(tmp_path / "bad.csv")


def test_claims_hold_for_the_papers_own_numbers_and_fail_for_worse():
    rows = [dict(zip(COLUMNS, (*key, "fully_sampled", *values, 36), strict=True)) for key, values in PAPER.items()]
    assert [claim["holds"] for claim in check_claims(rows)] == ["yes", "yes", "yes", "no", "yes", "yes"]
    for row in rows:
        if row["method"] == "SGR":
            row |= {"precision_lower": 0.9, "uncertain_share": 0.2, "psnr": row["psnr"] - 0.5}
    assert [claim["holds"] for claim in check_claims(rows)] == ["no", "yes", "no", "no", "yes", "no"]
    assert check_claims(rows[:1]) == []
    interval = {"segmenter": "guiding", "reference": "fully_sampled", "growth_ci_low": 2.0, "growth_ci_high": 3.125}
    numbers = [claim["numbers"] for claim in check_claims(rows, [{"method": "RR", **interval}])]
    assert numbers[3] == "2.51x (95 %: 2.00 to 3.12)" and "95 %" not in numbers[2]
