"""The page in a real browser: an installed chromium, driven by playwright, against a server with a tiny pipeline.

On a busy machine all of this is slow, so that nothing here depends on how long something takes: what has to happen
while a run goes on happens while the run is held (`hold`), and notices that disappear are recorded (`window.notices`).
"""

import csv
import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE = 900_000  # ms; on a machine that is busy with something else
SMALL_MB = 1
# `sgr app`, but that a run waits after each step for as long as there is a file "hold".
SERVER = """
import sys, time
from pathlib import Path
from sgr_diffusers import cli
from sgr_diffusers.app import events

run_isolated = events.run_isolated

def run_held(pipe, request, limits, on_progress, is_stopped):
    def report(*progress):
        on_progress(*progress)
        while Path("hold").exists() and not is_stopped():
            time.sleep(0.05)
    return run_isolated(pipe, request, limits, report, is_stopped)

events.run_isolated = run_held
sys.exit(cli.main(["app", *sys.argv[1:]]))
"""
RECORD_NOTICES = """
window.notices = [];
new MutationObserver(() => {
  for (const notice of document.querySelectorAll('[data-testid=toast-body]'))
    if (!window.notices.includes(notice.innerText)) window.notices.push(notice.innerText);
}).observe(document, {childList: true, subtree: true, characterData: true});
"""
# Gradio fades what it is about to replace, and fades it in again; text is too faint for its background meanwhile.
UNCHANGING = """
() => !document.querySelector('.pending')
  && !document.getAnimations().some(each => each instanceof CSSTransition && each.playState === 'running')
"""

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no chromium is installed, the page is not tested: apt-get install chromium"
    ),
]


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):
    """Address of a server, and the folder that its temporary files are in."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GRADIO_")}
    environment |= {"TMPDIR": str(folder), "HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-c", SERVER, "--model", str(model), "--device", "cpu", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--max-upload-mb", str(SMALL_MB), "--max-minutes", "600"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE / 1000
        while True:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=60).close()
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(1)
        yield address, folder
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE / 1000)
    assert not list(folder.glob("sgr_app_*")), "temporary files were left behind"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS, timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, server, request):
    """Open the page as another visitor; what it asks of other servers, or complains of, is an error."""
    contexts, foreign = [], []

    def open_one(width=1360, height=900):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(RECORD_NOTICES)
        page.on("request", lambda asked: foreign.append(asked.url) if is_foreign(asked.url) else None)
        page.on("pageerror", lambda error: foreign.append(str(error)))
        page.goto(server[0])
        page.wait_for_selector("#sgr-preview img")
        return page

    def is_foreign(url):
        return not url.startswith((server[0], "data:", "blob:"))

    yield open_one
    pictures = os.environ.get("SGR_SCREENSHOTS")  # a folder, for whoever wants to look at the pages
    for number, context in enumerate(contexts):
        if pictures:
            name = f"{request.node.name}_{number}.png"
            context.pages[0].screenshot(path=Path(pictures) / name, full_page=True)
        context.close()
    assert not foreign


@pytest.fixture
def hold(server):
    """Within this context every run waits after its next step."""

    @contextmanager
    def held():
        (server[1] / "hold").touch()
        try:
            yield
        finally:
            (server[1] / "hold").unlink()

    return held


def wait_for_notice(page, text):
    page.wait_for_function("text => window.notices.some(notice => notice.includes(text))", arg=text)


def set_steps(page, number, seed=0):
    page.get_by_text("More settings").click()
    fields = [("#sgr-steps input[type=number]", number), ("#sgr-seed input", seed)]
    shown = [*fields, ("#sgr-steps input[type=range]", number)]
    for _ in range(20):  # a page that is still being built puts the old values back
        for label, value in fields:
            page.locator(label).fill(str(value))
            page.locator(label).blur()
        page.wait_for_timeout(500)
        if all(page.locator(label).input_value() == str(value) for label, value in shown):
            return
    raise AssertionError(f"the page does not keep {shown}")


def choose_file(page, path, wait_for="slices of"):
    page.get_by_label("My own file").check()
    page.locator("#sgr-upload input[type=file]").set_input_files(path)
    page.locator("#sgr-summary").get_by_text(wait_for).wait_for()


def run(page):
    page.get_by_role("button", name="Run", exact=True).click()


def downloaded(page, button):
    page.locator(button).wait_for()
    with page.expect_download() as waiting:
        page.locator(button).click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def table_of(page):
    name, content = downloaded(page, "#sgr-csv")
    return name, list(csv.DictReader(io.StringIO(content.decode())))


def expected_rows(model, scan, n_steps, seed=0, slice_number=3, mask="poisson_8.0x"):
    from sgr_diffusers.app.limits import AppLimits
    from sgr_diffusers.app.runs import RunRequest, SliceRequest, run_case
    from sgr_diffusers.app.uploads import describe_case
    from sgr_diffusers.reconstruction.volume import load_pipeline

    pipe = load_pipeline(model, "cpu")
    request = RunRequest(
        SliceRequest(describe_case(scan, AppLimits()), slice_number, mask), pipe.class_names, n_steps, True, seed=seed
    )
    return run_case(pipe, request, AppLimits()).rows()


def assert_rows(rows, expected):
    assert [row["class"] for row in rows] == [row["class"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        for key in ("lower_mm3", "upper_mm3", "fully_sampled_mm3"):
            assert float(row[key]) == pytest.approx(other[key], rel=1e-6)


def test_upload_run_look_and_download(open_page, model, scan):
    page = open_page()
    assert page.get_by_text("not for clinical use").is_visible()
    choose_file(page, scan)
    assert "MTR_001.h5: 6 slices of 24 x 16 pixels, 2 coils" in page.locator("#sgr-summary").inner_text()
    set_steps(page, 3)
    run(page)
    page.wait_for_selector("#sgr-picture img")
    titles = page.locator("#sgr-picture .sgr-title").all_inner_texts()
    assert titles == ["Fully sampled", "Lower bound", "Upper bound", "Uncertainty boundary"]
    for image in page.locator("#sgr-picture img, #sgr-fade img").all():
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
    for picture in page.locator("#sgr-picture .sgr-picture").all():
        assert picture.bounding_box()["width"] > 200
    expected = expected_rows(model, scan, 3)
    plot = page.locator("#sgr-plot").inner_text()
    for row in expected:
        if row["upper_mm3"]:
            assert f"{row['lower_mm3']:.0f} mm³ to {row['upper_mm3']:.0f} mm³" in plot
    name, rows = table_of(page)
    assert name == "MTR_001_slice3_volumes.csv"
    assert_rows(rows, expected)
    name, content = downloaded(page, "#sgr-zip")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert name == "MTR_001_slice3_bounds.zip" and archive.testzip() is None
        assert "MTR_001_slice3/meniscus_upper_segmentation.nii.gz" in archive.namelist()

    upper = page.locator("#sgr-fade img.sgr-upper")
    colours = page.locator("#sgr-fade img.sgr-upper-colours")
    opacity = "image => Number(getComputedStyle(image).opacity)"
    assert (upper.evaluate(opacity), colours.evaluate(opacity)) == (0, 0)
    slider = page.get_by_role("slider", name=re.compile("From the lower to the upper reconstruction"))
    slider.focus()
    for _ in range(60):
        page.keyboard.press("ArrowRight")
    assert upper.evaluate(opacity) == pytest.approx(0.6) and colours.evaluate(opacity) == 1
    page.get_by_label("Show the segmentations in colour").uncheck()
    assert not colours.is_visible() and upper.is_visible()
    assert "3 fast steps" in page.locator("#sgr-headline").inner_text()
    page.locator("#sgr-shown").get_by_label("tibial cartilage").check()
    page.locator("#sgr-fade").get_by_text("From lower to upper bound: tibial cartilage").wait_for()

    page.get_by_label("Synthetic knee").check()  # what is below would be of another case
    page.locator("#sgr-results").wait_for(state="hidden")
    assert "Done" not in page.locator("#sgr-status").inner_text()


def test_first_screen_shows_an_example_and_can_be_read_in_dark_mode(open_page):
    page = open_page()
    assert page.locator("#sgr-example img").evaluate("image => image.naturalWidth > 500 && image.alt.length > 50")
    page.evaluate("document.body.classList.add('dark')")
    for text in page.locator("#sgr-head .sgr-warning, #sgr-head .sgr-warning b").all():
        assert text.evaluate("element => getComputedStyle(element).color") == "rgb(74, 44, 5)"
    page.get_by_role("button", name="Run", exact=True).focus()
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="install '.[test]'").Axe()
    page = open_page()
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{page.url}?__theme={scheme}")
    page.wait_for_selector("#sgr-preview img")
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}

    def violations():
        page.wait_for_function(UNCHANGING)
        found = axe.run(page, options=rules).response["violations"]
        return {(each["id"], node["html"][:200]) for each in found for node in each["nodes"]}

    assert not violations()
    set_steps(page, 2)
    run(page)
    page.wait_for_selector("#sgr-picture img")
    page.locator("#sgr-stop").wait_for(state="hidden")  # the run has ended for the buttons, too
    assert not violations()


def test_bad_uploads_are_explained_and_not_run(open_page, tmp_path):
    page = open_page()
    bad = tmp_path / "scan.h5"
    with h5py.File(bad, "w") as file:
        file["kspace"] = h5py.ExternalLink("/etc/passwd", "kspace")
    choose_file(page, bad, "refers to another file")
    wait_for_notice(page, "refers to another file")
    text = page.locator("body").inner_text()
    assert "Traceback" not in text and "/sgr_app_" not in text
    run(page)
    page.locator("#sgr-status").get_by_text("There is no file to reconstruct").wait_for()
    wait_for_notice(page, "There is no file to reconstruct")
    assert page.locator("#sgr-picture img").count() == 0

    large = tmp_path / "large.npy"
    np.save(large, np.zeros((1, 1, 400, 400), np.complex64))  # 1.3 MB
    page.locator("#sgr-upload").get_by_label("Clear").first.click()
    # The field is made anew: a file that the old one gets before would be lost.
    page.locator("#sgr-summary").get_by_text("refers to another file").wait_for(state="detached")
    page.locator("#sgr-upload").get_by_label("Clear").first.wait_for(state="detached")
    page.locator("#sgr-upload input[type=file]").set_input_files(large)
    page.locator("#sgr-summary").get_by_text("large.npy has 1.3 MB, but at most 1 MB can be used here").wait_for()
    assert page.locator("#sgr-upload").get_by_text("large.npy").count() == 0

    page.get_by_label("Synthetic knee").check()
    page.locator("#sgr-summary").get_by_text("synthetic_knee.h5").wait_for()
    page.wait_for_selector("#sgr-preview img")


def test_two_visitors_take_turns_and_each_gets_the_own_result(open_page, hold, model, scan):
    first, second = open_page(), open_page()
    choose_file(first, scan)
    set_steps(first, 4)
    choose_file(second, scan)
    set_steps(second, 3, seed=7)
    with hold():
        run(first)
        first.locator("#sgr-status").get_by_text(re.compile("Step 1 of")).first.wait_for()
        run(second)
        second.locator("#sgr-status").get_by_text(re.compile(r"queue: 1/1")).first.wait_for()
        assert first.locator("#sgr-picture img").count() == 0
    for page, n_steps, seed in ((first, 4, 0), (second, 3, 7)):
        page.wait_for_selector("#sgr-picture img")
        how = f"{n_steps} fast steps, strength of the search 1, random seed {seed},"
        assert how in page.locator("#sgr-headline").inner_text()
    assert_rows(table_of(first)[1], expected_rows(model, scan, 4))
    assert_rows(table_of(second)[1], expected_rows(model, scan, 3, seed=7))


def test_a_run_is_stopped_and_the_next_one_works(open_page, hold, scan):
    page = open_page()
    choose_file(page, scan)
    set_steps(page, 100)
    with hold():
        run(page)
        page.locator("#sgr-status").get_by_text(re.compile("Step 1 of")).first.wait_for()
        page.get_by_role("button", name="Stop").click()
        page.locator("#sgr-status").get_by_text("The run was stopped").wait_for()
    assert page.locator("#sgr-picture img").count() == 0
    page.locator("#sgr-steps input[type=number]").fill("2")
    page.locator("#sgr-steps input[type=number]").blur()
    page.locator("#sgr-fast").get_by_label("even, as in the paper").check()
    run(page)
    page.wait_for_selector("#sgr-picture img")
    assert "2 steps, strength of the search 1" in page.locator("#sgr-headline").inner_text()


def test_an_unknown_voxel_size_is_asked_for(open_page, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "mine.npy", (rng.standard_normal((1, 1, 24, 16)) + 1j).astype(np.complex64))
    page = open_page()
    choose_file(page, tmp_path / "mine.npy", "its voxel size is not stated")
    page.locator("#sgr-preview").get_by_text("Enter the three edge lengths").wait_for()
    for label in ("Slice distance, mm", "Row height, mm", "Column width, mm"):
        page.get_by_label(label).fill("2")
        page.get_by_label(label).blur()
    page.wait_for_selector("#sgr-preview img")
    set_steps(page, 2)
    run(page)
    page.wait_for_selector("#sgr-picture img")
    assert page.locator("#sgr-picture .sgr-title").first.inner_text() == "Plain reconstruction"
    assert "plain reconstruction:" in page.locator("#sgr-plot").inner_text()


def test_phone(open_page):
    page = open_page(390, 844)
    set_steps(page, 2)
    run(page)
    page.wait_for_selector("#sgr-picture img")
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    plot = page.locator("#sgr-plot").inner_text()
    assert "Volumes in 2 slices together" in plot and plot.count("best estimate:") == 5  # four, and the legend
    for mark in ("bar", "diamond", "dot"):
        assert page.locator(f"#sgr-plot .sgr-track .sgr-{mark}").first.is_visible()
    boxes = [picture.bounding_box() for picture in page.locator("#sgr-picture .sgr-picture").all()]
    assert len(boxes) == 4 and all(box["width"] >= 150 and box["x"] >= 0 for box in boxes)
    for title in page.locator("#sgr-picture .sgr-title, #sgr-plot .sgr-numbers").all():
        assert title.evaluate("element => element.scrollWidth <= element.clientWidth + 1")
