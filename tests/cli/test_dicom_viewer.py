"""What `sgr reconstruct --dicom` writes coincides in Cornerstone3D, the library of OHIF, in a headless browser.

Needs npm, which fetches the library, and chromium; minutes.
"""

import functools
import http.server
import shutil
import subprocess
import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest

from sgr_diffusers import cli
from tests.helpers.tiny_pipeline import save_tiny_pipeline

pytest.importorskip("highdicom", reason="highdicom is not installed: pip install '.[dicom]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")

from tests.cli.test_dicom import volume, write_raw  # noqa: E402
from tests.helpers.dicom_files import write_series  # noqa: E402

CHROMIUM, NPM = shutil.which("chromium"), shutil.which("npm")
CLASSES = ("patellar_cartilage", "femoral_cartilage", "tibial_cartilage", "meniscus")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(
        not (CHROMIUM and NPM), reason="no npm or no chromium is installed: apt-get install npm chromium"
    ),
]


@pytest.fixture
def site(tmp_path):
    """Folder of a server: the viewer, a series, and what was written for it; with the address."""
    shutil.copytree(Path(__file__).parents[1] / "helpers" / "viewer", tmp_path / "viewer")
    for command in (["install", "--no-audit", "--no-fund", "--ignore-scripts"], ["run", "build"]):
        done = subprocess.run([NPM, *command], cwd=tmp_path / "viewer", capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    folder = tmp_path / "viewer" / "site"
    (folder / "index.html").write_text("<script type=module src=viewer.js></script>")
    write_series(folder / "series", volume())
    write_raw(folder / "raw.h5", volume())
    save_tiny_pipeline(tmp_path / "pipeline")
    arguments = ["--model", str(tmp_path / "pipeline"), "--steps", "2", "--slices", "1:4", "--output"]
    arguments = ["reconstruct", str(folder / "raw.h5"), "--dicom", str(folder / "series"), *arguments]
    assert cli.main([*arguments, str(folder / "out")]) == 0
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_images_and_segments_coincide(site):
    folder, address = site
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_function("window.show !== undefined", timeout=300_000)
        shown = page.evaluate(
            "([images, sources, segmentation]) => window.show(images, sources, segmentation)",
            [
                [f"{address}/out/dicom/meniscus_upper/{number:04d}.dcm" for number in (1, 2, 3)],
                [f"{address}/series/{number:03d}.dcm" for number in (1, 2, 3)],
                f"{address}/out/dicom/segmentation.dcm",
            ],
        )
        browser.close()
    expected = nibabel.load(folder / "out/meniscus_upper_image.nii.gz").get_fdata()
    for image, source, plane in zip(shown["images"], shown["sources"], expected, strict=True):
        for key in ("imagePositionPatient", "imageOrientationPatient", "frameOfReferenceUID", "rowPixelSpacing"):
            assert image["plane"][key] == source["plane"][key]
        np.testing.assert_allclose(np.reshape(image["pixels"], plane.shape), plane, atol=expected.max() / 1e4)
    assert len(shown["names"]) == 8
    n_pixels = 0
    for number, label in enumerate(shown["names"], start=1):
        name, target = label.removesuffix(" bound").replace(" cartilage", "_cartilage").split(", ")
        labels = nibabel.load(folder / f"out/{name}_{target}_segmentation.nii.gz").get_fdata()
        for source, plane in zip(shown["sources"], labels == CLASSES.index(name) + 1, strict=True):
            maps = [map_["pixels"] for map_ in shown["labelMaps"] if map_["source"] == source["id"]]
            np.testing.assert_array_equal((np.array(maps) == number).any(axis=0).reshape(plane.shape), plane)
            n_pixels += plane.sum()
    assert n_pixels > 100
