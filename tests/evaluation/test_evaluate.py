"""`sgr evaluate` with a tiny pipeline: killed and restarted, divided, extended, and refused."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sgr_diffusers import SegmentationUNet, cli
from sgr_diffusers.data.scan_files import close_files
from sgr_diffusers.data.skm_tea import CLASS_NAMES
from sgr_diffusers.evaluation.counts import equal_budget_samples
from sgr_diffusers.evaluation.load import labels_of, load_results
from sgr_diffusers.evaluation.plan import Unit
from sgr_diffusers.evaluation.scores import score
from sgr_diffusers.evaluation.store import shard_path
from sgr_diffusers.evaluation.table1 import table1_rows, write_table1
from sgr_diffusers.guidance.strength import default_strength
from sgr_diffusers.mri.methods import NOISE_AWARE_ITERATIONS
from sgr_diffusers.schedulers.support import PUSH_EXPONENT
from sgr_diffusers.utils.files import is_partial
from tests.helpers.layout_fixture import write_tiny_skm_tea
from tests.helpers.tiny_pipeline import save_tiny_pipeline

N_UNITS = 2 * (1 + 2 * 2)  # scans x (reference + accelerations x methods)
COSTS = {
    "seconds",
    "n_threads",
    *(f"seconds_{n}" for n in ("unet_forward", "unet_backward", "segmentation", "physics")),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_skm_tea(folder / "data", n_scans=(("test", 2),))
    yield folder / "data", save_tiny_pipeline(folder / "pipeline")
    close_files()


def arguments(inputs, output, *more):
    data, model = inputs
    fixed = ["--accelerations", "4", "8", "--steps", "3", "--rr-samples", "3", "--n-slices-per-scan", "1"]
    return ["evaluate", str(data), "--model", str(model), "--output", str(output), *fixed, *more]


def evaluate(inputs, output, *more):
    assert cli.main([*arguments(inputs, output, *more), "--traceback"]) == 0
    return load_results(output)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """An evaluation that was not interrupted."""
    output = tmp_path_factory.mktemp("whole") / "results"
    evaluate(inputs, output)
    return output


def rows_without_costs(output):
    rows = load_results(output).rows
    return {unit: {key: value for key, value in row.items() if key not in COSTS} for unit, row in rows.items()}


def table_bytes(output):
    results = load_results(output)
    write_table1(output.parent / "table1.csv", table1_rows(score(results), results.strength))
    return (output.parent / "table1.csv").read_bytes()


def start(inputs, output, *more):
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sgr_diffusers.cli", *arguments(inputs, output, *more)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def shards(output):
    return sorted(path for path in output.glob("units/*/*.parquet") if not is_partial(path))


def test_an_evaluation_holds_what_was_planned(whole):
    results = load_results(whole)
    assert len(results.rows) == N_UNITS and not results.missing
    for unit, row in results.rows.items():
        assert len(row["images"]) == {"reference": 0, "SGR": 8, "RR": 3}[unit.kind]
        assert all(0 <= image["residual"] < 0.01 and image["ssim"] <= 1 for image in row["images"])
        assert row["seconds"] > row["seconds_unet_forward"] > 0 or unit.kind == "reference"
    sgr = next(row for _, row in results.of_kind("SGR"))
    assert sgr["n_forward"] >= 8 * 3 and 0 < sgr["n_backward"] <= 8 * 2  # the last step is not guided
    rr = next(row for _, row in results.of_kind("RR"))
    assert (rr["n_forward"], rr["n_backward"]) == (9, 0)
    assert rr["strength_used"] is None
    assert sgr["strength_used"] == pytest.approx(
        default_strength(1 / 3, 1.0, PUSH_EXPONENT["DDPMScheduler"]), rel=0.01
    )
    assert set(equal_budget_samples(results).values()) <= set(range(8, 25))
    config = json.loads((whole / "config.json").read_text())
    assert config["identity"]["classes"] == list(CLASS_NAMES)
    assert config["identity"]["versions"]["torch"].startswith("2.")


def test_killed_and_started_again_it_ends_with_the_same_table(inputs, whole, tmp_path):
    output = tmp_path / "results"
    process = start(inputs, output)
    deadline = time.monotonic() + 300
    while len(shards(output)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = shards(output)
    assert process.returncode == -signal.SIGKILL and 2 <= len(done) < N_UNITS
    times = {path: path.stat().st_mtime_ns for path in done}
    done[0].with_name(f".{done[0].name}.1.partial").write_bytes(b"half")
    evaluate(inputs, output, "--limit", "1")
    assert len(shards(output)) == len(done) + 1
    evaluate(inputs, output)
    assert {path: path.stat().st_mtime_ns for path in done} == times  # nothing was done twice
    assert not list(output.glob("units/*/.*.partial*"))
    assert rows_without_costs(output) == rows_without_costs(whole)
    assert table_bytes(output) == table_bytes(whole)


def test_two_processes_give_the_same_table_as_one(inputs, whole, tmp_path):
    output = tmp_path / "results"
    process = start(inputs, output, "--num-processes", "2")
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    assert out.count(f"{N_UNITS} of {N_UNITS} units are done") == 1  # said by one of them
    assert rows_without_costs(output) == rows_without_costs(whole)
    assert table_bytes(output) == table_bytes(whole)


def test_damaged_shards_are_named_and_done_again(inputs, whole, tmp_path, capsys):
    output = tmp_path / "results"
    shutil.copytree(whole, output)
    damaged = shards(output)[1]
    damaged.write_bytes(damaged.read_bytes()[:-30])
    evaluate(inputs, output)
    assert f"{damaged} is damaged" in capsys.readouterr().err
    assert rows_without_costs(output) == rows_without_costs(whole)


@pytest.mark.parametrize(
    ("more", "difference"),
    [
        (("--steps", "4"), "settings.num_inference_steps: 3 there, 4 now"),
        (("--seed", "1"), "settings.seed: 0 there, 1 now"),
        (("--scheduler", "DDPMScheduler"), "scheduler.class: DDIMScheduler there, DDPMScheduler now"),
        (("--strength", "0.3"), "settings.guidance_strength"),
        (("--guidance-from", "0.3"), "settings.guidance_from: 1.0 there, 0.3 now"),
        (("--slices", "all"), "settings.slices: relevant there, all now"),
    ],
)
def test_a_folder_of_another_configuration_is_refused(inputs, whole, capsys, more, difference):
    before = (whole / "config.json").read_bytes()
    assert cli.main(arguments(inputs, whole, *more)) == 2
    message = capsys.readouterr().err
    assert "holds results of another configuration" in message and difference in message
    assert (whole / "config.json").read_bytes() == before


def test_other_weights_and_other_data_are_another_configuration(inputs, whole, tmp_path, capsys):
    model = tmp_path / "pipeline"
    shutil.copytree(inputs[1], model)
    SegmentationUNet(CLASS_NAMES, channels=(4, 8), strides=(2,), num_res_units=1).save_pretrained(
        model / "segmentation_model"
    )
    assert cli.main(arguments((inputs[0], model), whole)) == 2
    assert "weights: " in capsys.readouterr().err
    other = ("--segmentation", str(model))
    assert cli.main(arguments(inputs, whole, *other)) == 2
    assert "weights: " in capsys.readouterr().err
    few = ("--max-scans", "1", "--methods", "SGR", "--accelerations", "8")
    evaluate((inputs[0], model), tmp_path / "within", *few)
    evaluate(inputs, tmp_path / "given", *few, *other)
    assert rows_without_costs(tmp_path / "given") == rows_without_costs(tmp_path / "within")
    data = tmp_path / "data"
    shutil.copytree(inputs[0], data)
    assert cli.main(arguments((data, inputs[1]), whole)) == 0  # a copy elsewhere is the same data
    path = data / "annotations/v1.0.0/test.json"
    path.write_text(path.read_text().replace("1.6", "1.7"))
    capsys.readouterr()
    assert cli.main(arguments((data, inputs[1]), whole)) == 2
    assert "data.MTR_001: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--accelerations", "4", "5"), "poisson_5.0x"),
        (("--slices", "99:"), "no slice is left"),
        (("--scheduler", "Nonsense"), "`scheduler` 'Nonsense' is no scheduler of diffusers"),
        (("--segmentation", "nowhere"), "`segmentation` nowhere holds no segmentation model"),
        (("--second-segmentation", "nowhere"), "`second_segmentation` nowhere holds no segmentation model"),
        (("--scheduler", "DDPMScheduler", "--timesteps", "5", "9"), "`timesteps` must fall"),
        (("--fast", "--timesteps", "9", "5"), "`timesteps` must not be given with `fast`"),
        (("--fast", "--scheduler", "DDIMScheduler"), "--fast chooses the scheduler itself"),
        (("--num-threads", "0"), "`num_threads`"),
        (("--limit", "-1"), "`limit`"),
        (("--split", "val"), "val.json is missing: `split` must be one that"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(inputs, tmp_path, capsys, more, message):
    assert cli.main(arguments(inputs, tmp_path / "results", *more)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_labels_of_other_classes_than_the_model_has(inputs, tmp_path, capsys):
    data = write_tiny_skm_tea(tmp_path / "other", (("heldout", 1),), class_names=tuple("abcdef"))
    command = arguments((data, inputs[1]), tmp_path / "results", "--split", "heldout", "--limit", "1")
    assert cli.main(command) == 2
    assert "the labels of the data have ('a', 'b', 'c', 'd', 'e', 'f')" in capsys.readouterr().err
    assert cli.main([*command, "--reference", "fully_sampled"]) == 0


def test_a_folder_with_other_files_is_refused(inputs, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("keep")
    assert cli.main(arguments(inputs, tmp_path)) == 2
    assert "is no results folder, but holds files" in capsys.readouterr().err


def test_dry_run_counts_estimates_and_writes_nothing(inputs, tmp_path, whole, capsys):
    assert cli.main(arguments(inputs, tmp_path / "results", "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "Units: 2 reference (2 to do), 4 SGR (4 to do), 4 RR (4 to do)." in printed
    assert "one slice timed" in printed and f"{N_UNITS} units: " in printed
    assert not (tmp_path / "results").exists()
    before = (whole / "config.json").read_bytes()
    assert cli.main(arguments(inputs, whole, "--dry-run", "--strengths", "0.01")) == 0
    assert "mean of the units that are done" in capsys.readouterr().out
    assert (whole / "config.json").read_bytes() == before


def test_consistency_is_chosen_and_recorded(inputs, tmp_path):
    results = evaluate(inputs, tmp_path / "results", "--max-scans", "1", "--consistency", "noise_aware")
    settings = results.config["identity"]["settings"]
    assert (settings["consistency"], settings["cg_iterations"]) == ("noise_aware", NOISE_AWARE_ITERATIONS)


def test_a_folder_is_taken_further(inputs, whole, tmp_path):
    second = tmp_path / "second"
    SegmentationUNet(CLASS_NAMES, channels=(4, 8), strides=(2,), num_res_units=1).save_pretrained(second)
    output = tmp_path / "results"
    fixed = ("--second-segmentation", str(second), "--dtype", "bfloat16", "--accelerations", "8")
    first = evaluate(inputs, output, *fixed, "--max-scans", "1")
    assert {unit.scan_id for unit in first.rows} == {"MTR_001"}
    more = ("--strengths", "0", "0.5", "--rr-curve-slices", "1", "--rr-curve-samples", "20")
    results = evaluate(inputs, output, *fixed, *more)
    assert len(results.rows) == len(first.rows) * 2 + 2 + 2 * 2 and not results.missing
    assert all(results.rows[unit]["images"] == row["images"] for unit, row in first.rows.items())
    row = next(row for unit, row in results.of_kind("SGR") if unit.strength == 0.5)
    assert row["strength_used"] == 0.5 and row["images"][0]["second_labels"] is not None
    samples = results.samples("MTR_001", next(iter(first.rows)).slice, 8.0)
    assert len(samples) == 20 and len({sample["ssim"] for sample in samples}) == 20  # all noise is fresh
    tables = score(results)
    assert set(tables.scores["segmenter"]) == {"guiding", "second"}
    assert set(tables.scores["strength"]) >= {0.0, 0.5, results.strength}
    assert len(tables.curve)


def test_at_strength_zero_guidance_is_the_first_unguided_sample(inputs, tmp_path):
    results = evaluate(inputs, tmp_path / "results", "--strength", "0", "--max-scans", "1")
    for unit, row in results.of_kind("SGR"):
        unguided = results.samples(unit.scan_id, unit.slice, unit.acceleration)[0]
        for image in row["images"]:
            assert (labels_of(row, image["labels"]) == labels_of(row, unguided["labels"])).mean() > 0.99
            assert image["ssim"] == pytest.approx(unguided["ssim"], abs=1e-4)
        assert row["n_backward"] == 0


def test_without_manual_labels_and_with_one_method(inputs, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(inputs[0], data)
    shutil.rmtree(data / "segmentation_masks")
    more = ("--reference", "fully_sampled", "--slices", "2,3", "--methods", "RR")
    results = evaluate((data, inputs[1]), tmp_path / "results", *more)
    tables = score(results)
    assert set(tables.scores["reference"]) == {"fully_sampled"}
    assert np.isfinite(tables.quality["psnr"]).all()


def test_manual_labels_alone(inputs, tmp_path):
    results = evaluate(inputs, tmp_path / "results", "--reference", "manual", "--max-scans", "1", "--fast")
    assert results.config["identity"]["scheduler"]["class"] == "DDPMScheduler"
    assert results.config["identity"]["settings"]["timesteps"][0] == 500
    assert set(score(results).scores["reference"]) == {"manual"}


def test_script_and_command_take_the_same_options(inputs):
    script = runpy.run_path(str(Path(__file__).parents[2] / "training/evaluate.py"))
    own = arguments(inputs, "out", "--num-threads", "2", "--second-segmentation", "x")[1:]
    parsed = [script["parse_arguments"](own), cli.create_parser().parse_args(["evaluate", *own])]
    joined = [argument.replace("-", "_").replace("__", "--") if argument[:2] == "--" else argument for argument in own]
    parsed.append(script["parse_arguments"](joined))
    assert all(vars(parsed[0]).items() <= vars(one).items() for one in parsed)


def test_images_are_kept_of_examples_only(whole):
    results = load_results(whole)
    kept = {tuple(pair) for pair in results.config["examples"]}
    assert kept
    for unit, row in results.rows.items():
        has_images = row["target_magnitude"] if unit.kind == "reference" else row["images"][0]["magnitude"]
        assert (has_images is not None) == ((unit.scan_id, unit.slice) in kept)


def test_shards_lie_where_the_unit_says(whole):
    unit = Unit("RR", "MTR_001", 3, 4.0, None, 0, 3)
    assert shard_path(whole, unit) in shards(whole)
