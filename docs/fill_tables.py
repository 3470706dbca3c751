"""Fills the tables of README and documentation, and draws the cards' diagrams, from the checkpoints' evaluations.

    python docs/fill_tables.py

A table stands between two comments, `<!-- NAME: begin -->` and `<!-- NAME: end -->`. The tests compare each with what
this script would write.
"""

import json
from pathlib import Path

import pandas as pd

from sgr_diffusers.evaluation.curves import width_figure
from sgr_diffusers.evaluation.table1 import read_table1, table1_markdown
from sgr_diffusers.figures.tables import format_table
from sgr_diffusers.pretrained import BRAIN_TUMOUR, GENERAL, PRETRAINED
from sgr_diffusers.publishing.general_card import KINDS, real_scans

ROOT = Path(__file__).parents[1]


def synthetic_overview() -> str:
    """Table 1 in a row for each acceleration: guided bounds / repeated reconstruction."""
    table = pd.DataFrame(read_table1(PRETRAINED / "evaluation" / "table1.csv"))
    table = table[table["reference"] == "fully_sampled"].set_index(["acceleration", "method"])
    heads = {
        "precision_lower": ("precision of lower bound", "{:.3f}"),
        "recall_upper": ("recall of upper bound", "{:.3f}"),
        "uncertain_share": ("share left open", "{:.3f}"),
        "psnr": ("PSNR in dB", "{:.1f}"),
    }
    rows = []
    for acceleration in table.index.unique("acceleration"):
        values = table.loc[acceleration]
        cells = {
            head: " / ".join(form.format(values.loc[method, name]) for method in ("SGR", "RR"))
            for name, (head, form) in heads.items()
        }
        rows.append({"acceleration": f"{acceleration:g}x", **cells})
    return format_table(rows, markdown=True)


def real_overview() -> str:
    """Ratios of errors in a row for each kind of scan: to L1-wavelet / to BART's."""
    table = real_scans(GENERAL)
    rows = []
    for kind, name in KINDS.items():
        values = table.loc[kind]
        cells = {f"{a:g}x": f"{row['ratio']:.2f} / {row['ratio_bart']:.2f}" for a, row in values.iterrows()}
        rows.append({"scans": name, "n": int(values["n"].iloc[0]), **cells})
    return format_table(rows, markdown=True)


def real_details() -> str:
    """Errors of all methods in a row for each kind of scan and acceleration."""
    heads = {
        "l1_wavelet": "L1-wavelet",
        "l1_wavelet_bart": "L1-wavelet of BART",
        "sample": "sample",
        "mean": "mean of samples",
        "ratio": "ratio to L1-wavelet",
        "ratio_bart": "ratio to BART's",
    }
    table = real_scans(GENERAL)
    rows = [
        {"scans": name, "n": int(row["n"]), "acceleration": f"{acceleration:g}x"}
        | {head: f"{row[key]:.3f}" for key, head in heads.items()}
        for kind, name in KINDS.items()
        for acceleration, row in table.loc[kind].iterrows()
    ]
    return format_table(rows, markdown=True)


def table1(checkpoint: Path) -> str:
    """Table 1 as `sgr report` writes it."""
    return table1_markdown(read_table1(checkpoint / "evaluation" / "table1.csv"))


def calibrated_widths() -> str:
    """Widths of calibrated intervals, and scans that they cover; samples cost as much or more."""
    table = pd.read_csv(PRETRAINED / "evaluation" / "calibration_baselines.csv")
    rows = []
    for (acceleration, coverage, name), group in table.groupby(["acceleration", "coverage", "class"], sort=False):
        row = {"acceleration": f"{acceleration:g}x", "coverage": f"{coverage:g}", "tissue": name.replace("_", " ")}
        for method, head in {
            "SGR": "ours",
            "extremes of 16": "extremes",
            "quantiles of 16": "quantiles",
        }.items():
            found = group[group["method"] == method].iloc[0]
            row[f"{head}: mm³ (covered)"] = f"{found['width_mm3']:.0f} ({found['covered']} of {found['n_test']})"
        rows.append(row)
    return format_table(rows, markdown=True)


def samplers() -> str:
    """Quality of unguided images by the pipeline and by samplers of deepinv, at the same number of evaluations."""
    table = pd.read_csv(PRETRAINED / "evaluation" / "samplers.csv")
    rows = [
        {
            "acceleration": f"{row['acceleration']:g}x",
            "sampler": row["sampler"],
            "evaluations": row["evaluations"],
            "PSNR in dB": f"{row['psnr']:.2f}",
            "SSIM": f"{row['ssim']:.3f}",
            "weight of the data": f"{row['weight']:g}, of {row['n_weights']} tried" if row["n_weights"] else "none",
        }
        for row in table.to_dict("records")
    ]
    return format_table(rows, markdown=True)


def segmentation() -> str:
    """Dice of the segmentation network of `general` over all pixels: test scans, and images drawn by contrast."""
    content = json.loads((GENERAL / "evaluation" / "segmentation.json").read_text())
    rows = [
        {"images": name}
        | {head.replace("_", " "): f"{v:.2f}" for head, v in zip(content["classes"], dice, strict=True)}
        for name, dice in content["rows"].items()
        if not name.endswith(("median over scans", "agreement with its mirror image"))
    ]
    return format_table(rows, markdown=True)


def architectures() -> str:
    """Errors of priors of other architectures or trainings, relative to those of the bundled one's, at equal time."""
    table = pd.read_csv(GENERAL / "evaluation" / "architectures.csv")
    rows = [
        {
            "prior": row["variant"],
            "parameters": f"{row['parameters'] / 1e6:.1f} M",
            "steps": str(row["steps"]),
            "error at low noise": f"{row['low_noise_ratio']:.2f}",
            "error at high noise": f"{row['high_noise_ratio']:.2f}",
        }
        for row in table.to_dict("records")
    ]
    return format_table(rows, markdown=True)


def appearance(part: str) -> str:
    """A table of synthetic training images beside real ones: `part` is "rows" or "levels"."""
    return format_table(json.loads((GENERAL / "evaluation" / "appearance.json").read_text())[part], markdown=True)


BLOCKS = {
    "README.md": {"synthetic": synthetic_overview, "real": real_overview},
    "docs/results.md": {
        "table 1": lambda: table1(PRETRAINED),
        "table 1, varied": lambda: table1(GENERAL),
        "segmentation": segmentation,
        "calibrated": calibrated_widths,
        "real scans": real_details,
        "samplers": samplers,
        "architectures": architectures,
        "training images": lambda: appearance("rows"),
        "anatomy": lambda: appearance("levels"),
    },
}


def filled(text: str, name: str, table: str) -> str:
    """The text with another table in its block `name`.

    Raises:
        ValueError: it has no such block.
    """
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise ValueError(f"The text must have a block between {begin.strip()!r} and {end!r}, but has none.")
    return f"{before}{begin}{table}\n{end}{after}"


def main() -> None:
    """Write all tables and diagrams."""
    for checkpoint in (PRETRAINED, BRAIN_TUMOUR):
        table = checkpoint / "evaluation" / "coverage.csv"
        width_figure(pd.read_csv(table)).savefig(table.with_suffix(".png"))
    for file, blocks in BLOCKS.items():
        text = (ROOT / file).read_text()
        for name, make in blocks.items():
            text = filled(text, name, make())
        (ROOT / file).write_text(text)


if __name__ == "__main__":
    main()
