"""Builds the Gradio page for a pipeline and limits: its layout, and which method of `events` answers each click.

Gradio is imported when the page is built. What the page shows is made in `views`, what it computes in `runs`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..reconstruction.demo import COVERAGE
from .events import BUNDLED, MODELS, OWN, READY, PageEvents, sampling_choices, slice_range
from .limits import AppLimits
from .uploads import FILE_TYPES
from .views import case_summary, example_view, message
from .visits import Visits

if TYPE_CHECKING:
    import gradio as gr

__all__ = ["build_page"]

_HEAD = """<header id="sgr-head"><h1>How much of the tissue does the measurement leave open?</h1>
<p>Undersampled MRI is reconstructed twice for each tissue: once with as little of it as the measurement allows, once
with as much. What lies between the two is the uncertainty boundary.</p>
<p class="sgr-warning" role="note"><b>For research. Not a medical device, not for clinical use.</b> No number or image
of this page may enter a decision about a patient. Upload nothing that identifies a person. Files stay on this server
and are deleted {when}.</p></header>"""
_SHOW_STATUS = """() => document.querySelector('#sgr-status').scrollIntoView({behavior: 'smooth', block: 'nearest'})"""
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
_PRIVATE: dict[str, Any] = {"api_visibility": "private"}
_QUIET: dict[str, Any] = {**_PRIVATE, "queue": False, "show_progress": "hidden"}


@dataclass(frozen=True)
class _Case:
    """Fields that choose what is reconstructed."""

    source: Any
    upload: Any
    summary: Any
    voxel_row: Any
    edges: list[Any]
    sampling: Any
    slice_number: Any
    model: Any


@dataclass(frozen=True)
class _Settings:
    """Fields that choose how, and the buttons."""

    tissues: Any
    interval: Any
    steps: Any
    fast: Any
    strength: Any
    seed: Any
    echo: Any
    run: Any
    stop: Any


@dataclass(frozen=True)
class _Results:
    """Fields that show a result; `fields` lists them as `PageEvents.reconstruct` returns their values."""

    column: Any
    headline: Any
    shown: Any
    zoom: Any
    picture: Any
    fade: Any
    plot: Any
    archive: Any
    table: Any

    def fields(self, result: Any, example: Any) -> list[Any]:
        views = [self.headline, self.shown, self.zoom, self.picture, self.fade, self.plot]
        return [result, self.column, example, *views, self.archive, self.table]


def build_page(pipe: SGRMRIPipeline, limits: AppLimits, folder: Path, is_default: bool = False) -> "gr.Blocks":
    """Build the page; runs of all visitors go through one queue, one at a time.

    Args:
        pipe: pipeline with a segmentation model that names its classes.
        limits: limits on what a visitor may ask for.
        folder: folder for results; the caller deletes it in the end.
        is_default: whether `pipe` is the default, so that files can also be reconstructed by the other bundled models.
    """
    import gradio as gr

    events = PageEvents(pipe, limits, Visits(folder), is_default)
    when = f"{max(limits.keep_seconds // 60, 1)} minutes after they were last used"
    with gr.Blocks(
        title="Bounds of tissue in accelerated MRI",
        analytics_enabled=False,
        delete_cache=(min(600, limits.keep_seconds), limits.keep_seconds),
    ) as page:
        case = gr.State(events.bundled, time_to_live=None)
        problem = gr.State("")  # with the file chosen last, or with the last run
        result = gr.State(None, time_to_live=limits.keep_seconds)
        gr.HTML(_HEAD.format(when=when))
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                choice = _case_fields(events)
                settings = _settings_fields(events, limits)
            with gr.Column(scale=9, min_width=320):
                status = gr.HTML(message(READY), elem_id="sgr-status")
                preview = gr.HTML(elem_id="sgr-preview")
        example = gr.HTML(example_view(), elem_id="sgr-example")
        results = _result_fields()
        measurement = [case, choice.slice_number, choice.sampling, settings.echo, *choice.edges]
        offered = [
            choice.upload,
            choice.summary,
            choice.voxel_row,
            choice.sampling,
            choice.slice_number,
            settings.echo,
        ]
        of_model = [settings.tissues, settings.interval, settings.fast]
        _wire_case(events, choice, [case, problem, *offered, status, results.column], measurement, preview, problem)
        choice.source.input(events.choose_source, [choice.source], [choice.model, *of_model], **_QUIET)
        choice.model.input(
            events.choose_model,
            [choice.model],
            [*of_model, status, results.column],
            show_progress_on=[settings.tissues],
            **_PRIVATE,
        )
        changes = [choice.sampling.input, choice.slice_number.input, settings.echo.input]
        changes += [edge.blur for edge in choice.edges]
        gr.on(
            changes, events.show_preview, measurement, [preview], trigger_mode="always_last",
            show_progress="hidden", **_PRIVATE
        )  # fmt: skip
        gr.on(changes, events.mark_outdated, [result], [status], **_QUIET)
        _wire_run(events, choice.model, settings, measurement, problem, status, results.fields(result, example))
        for event in (results.shown.input, results.zoom.input):
            views = [results.picture, results.fade]
            event(events.draw, [result, results.shown, results.zoom], views, show_progress="hidden", **_PRIVATE)
        max_bytes = {"max_bytes": round(limits.max_upload_mb * 1e6), "max_mb": limits.max_upload_mb}
        page.load(None, None, None, js=_REFUSE_LARGE_FILES % max_bytes, **_PRIVATE)
        page.load(events.show_preview, measurement, [preview], show_progress_on=[preview], **_PRIVATE)

        def leave(request: gr.Request) -> None:
            events.visits.leave(str(request.session_hash))

        page.unload(leave)
    return page


def _case_fields(events: PageEvents) -> _Case:
    import gradio as gr

    source = gr.Radio([BUNDLED, OWN], value=BUNDLED, label="Case", elem_id="sgr-source")
    upload = gr.File(label="Raw k-space", file_types=list(FILE_TYPES), visible=False, height=170, elem_id="sgr-upload")
    model = gr.Radio(
        [(MODELS[name], name) for name in events.models],
        value=events.models[0],
        label="The file shows",
        info="this chooses the model",
        visible=False,
        elem_id="sgr-model",
    )
    summary = gr.HTML(case_summary(events.bundled), elem_id="sgr-summary")
    with gr.Row(visible=False) as voxel_row:
        edges = [
            gr.Number(None, label=label, minimum=0, maximum=100, min_width=80)
            for label in ("Slice distance, mm", "Row height, mm", "Column width, mm")
        ]
    sampling = gr.Radio(
        label="Acceleration",
        info="8x keeps about an eighth of the measured samples, as a scan 8 times faster would",
        elem_id="sgr-sampling",
        **sampling_choices(events.bundled),
    )
    slice_number = gr.Slider(step=1, elem_id="sgr-slice", **slice_range(events.bundled))
    return _Case(source, upload, summary, voxel_row, edges, sampling, slice_number, model)


def _settings_fields(events: PageEvents, limits: AppLimits) -> _Settings:
    import gradio as gr

    of_tissues, of_interval, of_spacing = events.offers(events.models[0], by_default=True)
    tissues = gr.CheckboxGroup(label="Tissues (each adds to the duration)", elem_id="sgr-tissues", **of_tissues)
    interval = gr.Checkbox(
        label=f"Interval that holds the volume in {COVERAGE:.0%} of such scans",
        info="for all slices of the file together; steps and strength are those of the calibration",
        elem_id="sgr-interval",
        **of_interval,
    )
    with gr.Accordion("More settings", open=False):
        steps = gr.Slider(
            2,
            limits.max_steps,
            value=min(25, limits.max_steps),
            step=1,
            label="Steps",
            info="more are more accurate and take longer; 100 in the paper",
            elem_id="sgr-steps",
        )
        fast = gr.Radio(
            [("fast, for few steps", True), ("even, as in the paper", False)],
            label="Spacing of the steps",
            elem_id="sgr-fast",
            **of_spacing,
        )
        strength = gr.Slider(
            0,
            4,
            value=1,
            step=0.25,
            label="Strength of the search",
            info="1 is the default; more drives the bounds further apart",
        )
        seed = gr.Number(
            0,
            label="Random seed",
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
    return _Settings(tissues, interval, steps, fast, strength, seed, echo, run, stop)


def _result_fields() -> _Results:
    import gradio as gr

    with gr.Column(visible=False, elem_id="sgr-results") as column:
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
    return _Results(column, headline, shown, zoom, picture, fade, plot, archive, table)


def _wire_case(
    events: PageEvents, choice: _Case, fields: list[Any], measurement: list[Any], preview: Any, problem: Any
) -> None:
    """Another case: look into it, show its slice, and complain if it cannot be used."""
    for event in (choice.source.input, choice.upload.upload, choice.upload.clear):
        event(
            events.choose_case,
            [choice.source, choice.upload],
            fields,
            show_progress_on=[choice.summary],
            **_PRIVATE,
        ).then(events.show_preview, measurement, [preview], show_progress_on=[preview], **_PRIVATE).then(
            events.complain, [problem], None, show_progress="hidden", **_PRIVATE
        )


def _wire_run(
    events: PageEvents,
    model: Any,
    settings: _Settings,
    measurement: list[Any],
    problem: Any,
    status: Any,
    fields: list[Any],
) -> None:
    """Run and Stop."""
    import gradio as gr

    def reconstruct(
        request: gr.Request,
        *values: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it by its default
    ) -> tuple[Any, ...]:
        return events.reconstruct(str(request.session_hash), progress, *values)

    def stop_run(request: gr.Request) -> tuple[Any, ...]:
        return events.stop(str(request.session_hash))

    buttons = [settings.run, settings.stop]
    chosen = [
        model,
        settings.tissues,
        settings.interval,
        settings.steps,
        settings.fast,
        settings.strength,
        settings.seed,
    ]
    settings.run.click(None, None, None, js=_SHOW_STATUS, **_QUIET)
    started = settings.run.click(events.begin, None, [*buttons, status], **_QUIET)
    running = started.then(
        reconstruct,
        [*chosen, *measurement],
        [problem, status, *fields],
        show_progress_on=[status],
        concurrency_limit=1,
        concurrency_id="reconstruct",
        **_PRIVATE,
    )
    running.success(None, None, None, js=_SHOW_RESULTS, **_QUIET)
    running.then(events.end, None, buttons, **_QUIET).then(
        events.complain, [problem], None, show_progress="hidden", **_PRIVATE
    )
    # First the flag, which ends the run, then the place in the queue.
    settings.stop.click(stop_run, None, [*buttons, status], **_QUIET).then(
        None, None, None, cancels=[running], **_PRIVATE
    )
