"""Builds the Gradio page for a pipeline and limits: its layout, and what follows from each click.

Gradio is imported when the page is built. What the page shows is made in `views`, what it computes in `runs`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..io.raw_file import mask_label
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..reconstruction.demo import CASE
from ..reconstruction.volume import can_be_fast
from .downloads import write_downloads
from .limits import AppLimits, RunStopped
from .runs import CaseResult, RunRequest, SliceRequest, preview_slice, run_case
from .uploads import FILE_TYPES, CaseInfo, describe_case
from .views import (
    case_summary,
    headline_view,
    interval_plot,
    message,
    preview_view,
    progress_view,
    result_views,
    tissue_label,
)
from .visits import Visits

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["build_page"]

BUNDLED, OWN = "Synthetic knee (comes with the app)", "My own file"
AS_IS = "as it is"
_HEAD = """<header id="sgr-head"><h1>How much of the tissue does the measurement leave open?</h1>
<p>Undersampled MRI is reconstructed twice for each tissue: once with as little of it as the measurement allows, once
with as much. What lies between the two is the uncertainty boundary.</p>
<p class="sgr-warning" role="note"><b>For research. Not a medical device, not for clinical use.</b> No number or image
of this page may enter a decision about a patient. Upload nothing that identifies a person. Files stay on this server
and are deleted {when}.</p></header>"""
_READY = "Choose a case and press Run: both bounds of each tissue appear below."
_STOPPED = "The run was stopped."
_SHOW_RESULTS = """() => {
  if (document.querySelector('#sgr-status .sgr-done'))
    document.querySelector('#sgr-results').scrollIntoView({behavior: 'smooth'});
}"""
# Gradio itself says no more than "Error" of a file that is too large; the server refuses it, too.
_REFUSE_LARGE_FILES = """() => {
  const refuse = event => {
    const files = event.type === 'drop' ? event.dataTransfer.files : event.target.files;
    const large = [...(files || [])].find(file => file.size > %(max_bytes)d);
    if (!large || !event.target.closest('#sgr-upload')) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const text = document.querySelector('#sgr-summary .sgr-message');
    text.className = 'sgr-message sgr-error';
    text.setAttribute('role', 'alert');
    const size = (large.size / 1e6).toFixed(1);
    text.textContent = `${large.name} has ${size} MB, but at most %(max_mb)g MB can be used here.`;
  };
  for (const type of ['change', 'drop']) document.addEventListener(type, refuse, true);
}"""


def build_page(pipe: SGRMRIPipeline, limits: AppLimits, folder: Path) -> "gr.Blocks":  # noqa: C901
    """Build the page; runs of all visitors go through one queue, one at a time.

    Args:
        pipe: pipeline with a segmentation model that names its classes.
        limits: limits on what a visitor may ask for.
        folder: folder for results; the caller deletes it in the end.
    """
    import gradio as gr

    visits = Visits(folder)
    bundled = describe_case(CASE, AppLimits(), "synthetic_knee.h5")
    tissues, offers_fast = tuple(pipe.class_names or ()), can_be_fast(pipe)
    choose_one = (
        "Choose a file: HDF5 of SKM-TEA, fastMRI or ISMRMRD, or k-space in numpy's .npy or .npz; at most "
        f"{limits.max_upload_mb:g} MB."
    )
    when = f"{max(limits.keep_seconds // 60, 1)} minutes after they were last used"

    with gr.Blocks(
        title="Bounds of tissue in accelerated MRI",
        analytics_enabled=False,
        delete_cache=(min(600, limits.keep_seconds), limits.keep_seconds),
    ) as page:
        case = gr.State(bundled, time_to_live=None)
        problem = gr.State("")  # with the file chosen last, or with the last run
        result = gr.State(None, time_to_live=limits.keep_seconds)
        gr.HTML(_HEAD.format(when=when))
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                source = gr.Radio([BUNDLED, OWN], value=BUNDLED, label="Case", elem_id="sgr-source")
                upload = gr.File(
                    label="Raw k-space",
                    file_types=list(FILE_TYPES),
                    visible=False,
                    height=170,
                    elem_id="sgr-upload",
                )
                summary = gr.HTML(case_summary(bundled), elem_id="sgr-summary")
                with gr.Row(visible=False) as voxel_row:
                    edges = [
                        gr.Number(None, label=label, minimum=0, maximum=100, min_width=80)
                        for label in ("Slice distance, mm", "Row height, mm", "Column width, mm")
                    ]
                sampling = gr.Dropdown(label="Acceleration", elem_id="sgr-sampling", **_sampling_choices(bundled))
                slice_number = gr.Slider(step=1, elem_id="sgr-slice", **_slice_range(bundled))
                chosen = gr.CheckboxGroup(
                    [(tissue_label(name), name) for name in tissues],
                    value=list(tissues),
                    label="Tissues (each takes its time)",
                    elem_id="sgr-tissues",
                )
                with gr.Accordion("More settings", open=False):
                    steps = gr.Slider(
                        2,
                        limits.max_steps,
                        value=min(25, limits.max_steps),
                        step=1,
                        label="Steps",
                        info="100 in the paper; more take longer",
                        elem_id="sgr-steps",
                    )
                    fast = gr.Radio(
                        [("fast, for few steps", True), ("even, as in the paper", False)],
                        value=offers_fast,
                        label="Spacing of the steps",
                        visible=offers_fast,
                        elem_id="sgr-fast",
                    )
                    strength = gr.Slider(
                        0, 4, value=1, step=0.25, label="Strength", info="1 is the default; more widens the bounds"
                    )
                    seed = gr.Number(
                        0,
                        label="Seed",
                        precision=0,
                        minimum=0,
                        maximum=2**31 - 1,
                        info="of the noise",
                        elem_id="sgr-seed",
                    )
                    echo = gr.Dropdown([1], value=1, label="Echo", visible=False)
                with gr.Row():
                    run = gr.Button("Run", variant="primary", elem_id="sgr-run")
                    stop = gr.Button("Stop", variant="stop", visible=False, elem_id="sgr-stop")
            with gr.Column(scale=9, min_width=320):
                status = gr.HTML(message(_READY), elem_id="sgr-status")
                preview = gr.HTML(elem_id="sgr-preview")
        with gr.Column(visible=False, elem_id="sgr-results") as results:
            headline = gr.HTML(elem_id="sgr-headline")
            shown = gr.Radio([], label="Tissue shown", elem_id="sgr-shown")
            zoom = gr.Checkbox(True, label="Zoom in on the tissue", container=False, elem_id="sgr-zoom")
            picture = gr.HTML(elem_id="sgr-picture")
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    fade = gr.HTML(elem_id="sgr-fade")
                with gr.Column(scale=1, min_width=320):
                    plot = gr.HTML(elem_id="sgr-plot")
                    with gr.Row():
                        archive = gr.DownloadButton("NIfTI images (zip)", elem_id="sgr-zip")
                        table = gr.DownloadButton("Volumes (csv)", elem_id="sgr-csv")

        result_fields = [result, results, headline, shown, zoom, picture, fade, plot, archive, table]
        measurement = [case, slice_number, sampling, echo, *edges]

        def choose_case(source: str, upload: str | None) -> tuple[Any, ...]:
            new, problem = bundled, ""
            if source == OWN:
                try:
                    new = None if upload is None else describe_case(upload, limits)
                except ValueError as error:
                    new, problem = None, str(error)
            text = message(choose_one) if new is None else case_summary(new)
            return (
                new,
                problem,
                gr.update(visible=source == OWN),
                message(problem, "error") if problem else text,
                gr.update(visible=new is not None and new.voxel_size_mm is None),
                gr.update(**_sampling_choices(new)),
                gr.update(**_slice_range(new)),
                gr.update(choices=list(range(1, _n_echoes(new) + 1)), value=1, visible=_n_echoes(new) > 1),
            )

        def complain(problem: str) -> None:
            # A toast beside the text that stays: the former is seen, the latter can be read.
            if problem:
                raise gr.Error(problem, print_exception=False)

        def show_preview(*measurement: Any) -> str:
            try:
                request = _slice_request(*measurement)
                if request is None:
                    return ""
                scan, zero_filled, fully_sampled = preview_slice(request)
            except ValueError as error:
                return message(str(error), "error")
            return preview_view(zero_filled, fully_sampled, scan.voxel_size_mm, scan.orientation, scan.label)

        def begin() -> tuple[Any, ...]:
            return gr.update(interactive=False), gr.update(visible=True), ""  # a text would lie under the progress bar

        def end() -> tuple[Any, ...]:
            return gr.update(interactive=True), gr.update(visible=False)

        def reconstruct(
            request: gr.Request,
            chosen: list[str],
            n_steps: float,
            fast: bool,
            strength: float,
            seed: float | None,
            *measurement: Any,
            progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it by its default
        ) -> tuple[Any, ...]:
            visitor = str(request.session_hash)
            flag = visits.begin_run(visitor)
            progress(0, desc="Reading")
            try:
                slice_request = _slice_request(*measurement)
                if slice_request is None:
                    raise ValueError("There is no file to reconstruct. Choose one first.")
                names = tuple(name for name in tissues if name in chosen)
                settings = (int(n_steps), offers_fast and bool(fast), float(strength), int(seed or 0))
                wanted = RunRequest(slice_request, names, *settings)
                new = run_case(
                    pipe,
                    wanted,
                    limits,
                    lambda done, total, left: progress((done, total), desc=progress_view(done, total, left)),
                    flag.is_set,
                )
                files = write_downloads(new, visits.new_folder(visitor))
            except RunStopped:
                return "", message(_STOPPED), *[gr.skip()] * len(result_fields)
            except ValueError as error:  # RunRefused among them
                return str(error), message(str(error), "error"), *[gr.skip()] * len(result_fields)
            rows = new.rows()
            largest = max(rows, key=lambda row: row["upper_mm3"])["class"]
            names = [(tissue_label(name), name) for name in new.bounds.classes]
            return (
                "",
                message("Done: the result is below.", "done"),
                new,
                gr.update(visible=True),
                headline_view(new),
                gr.update(choices=names, value=largest),
                gr.update(value=True),
                *result_views(new, largest, zoom=True),
                interval_plot(rows),
                *(gr.update(value=str(file)) for file in files),
            )

        def draw(result: CaseResult | None, class_name: str | None, zoom: bool) -> tuple[Any, Any]:
            if result is None or class_name not in result.bounds.classes:
                return gr.update(), gr.update()
            return result_views(result, class_name, zoom)

        def stop_run(request: gr.Request) -> tuple[Any, ...]:
            visits.stop(str(request.session_hash))
            return gr.update(interactive=True), gr.update(visible=False), message(_STOPPED)

        def leave(request: gr.Request) -> None:
            visits.leave(str(request.session_hash))

        own: dict[str, Any] = {"api_visibility": "private"}
        quiet: dict[str, Any] = {**own, "queue": False, "show_progress": "hidden"}
        for event in (source.input, upload.upload, upload.clear):
            event(
                choose_case,
                [source, upload],
                [case, problem, upload, summary, voxel_row, sampling, slice_number, echo],
                show_progress_on=[summary],
                **own,
            ).then(show_preview, measurement, [preview], show_progress_on=[preview], **own).then(
                complain, [problem], None, show_progress="hidden", **own
            )
        changes = [sampling.input, slice_number.input, echo.input, *(edge.blur for edge in edges)]
        gr.on(
            changes, show_preview, measurement, [preview], trigger_mode="always_last",
            show_progress="hidden", **own
        )  # fmt: skip
        max_bytes = {"max_bytes": round(limits.max_upload_mb * 1e6), "max_mb": limits.max_upload_mb}
        page.load(None, None, None, js=_REFUSE_LARGE_FILES % max_bytes, **own)
        page.load(show_preview, measurement, [preview], show_progress_on=[preview], **own)

        started = run.click(begin, None, [run, stop, status], **quiet)
        running = started.then(
            reconstruct,
            [chosen, steps, fast, strength, seed, *measurement],
            [problem, status, *result_fields],
            show_progress_on=[status],
            concurrency_limit=1,
            concurrency_id="reconstruct",
            **own,
        )
        running.success(None, None, None, js=_SHOW_RESULTS, **quiet)
        running.then(end, None, [run, stop], **quiet).then(complain, [problem], None, show_progress="hidden", **own)
        # First the flag, which ends the run at its next step, then the place in the queue.
        stop.click(stop_run, None, [run, stop, status], **quiet).then(None, None, None, cancels=[running], **own)
        for event in (shown.input, zoom.input):
            event(draw, [result, shown, zoom], [picture, fade], show_progress="hidden", **own)
        page.unload(leave)
    return page


def _n_echoes(case: CaseInfo | None) -> int:
    return 1 if case is None else case.n_echoes


def _sampling_choices(case: CaseInfo | None) -> dict[str, Any]:
    """Choices and value of the acceleration; 8x where it is stored, as in the figures of the paper."""
    masks = () if case is None else case.masks
    value = next((name for name in masks if name == "poisson_8.0x"), masks[0] if masks else AS_IS)
    return {"choices": [*((mask_label(name), name) for name in masks), (AS_IS, AS_IS)], "value": value}


def _slice_range(case: CaseInfo | None) -> dict[str, Any]:
    n_slices = 1 if case is None else case.n_slices
    label = f"Slice (0 to {n_slices - 1})"
    return {
        "minimum": 0, "maximum": max(n_slices - 1, 1), "value": n_slices // 2, "label": label, "visible": n_slices > 1
    }  # fmt: skip


def _slice_request(
    case: CaseInfo | None, slice_number: float, sampling: str, echo: float, *edges: float | None
) -> SliceRequest | None:
    """Request for a slice from the fields of the page; `None` without a case."""
    if case is None:
        return None
    size = tuple(float(edge) for edge in edges if edge)
    return SliceRequest(
        case=case,
        slice_number=int(slice_number),
        mask_name=None if sampling == AS_IS else sampling,
        echo=int(echo),
        voxel_size_mm=(size[0], size[1], size[2]) if len(size) == 3 else None,
    )
