"""What follows from each click on the page: methods that take the values of its fields and return new ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

from ..calibration.record import CalibrationMismatch
from ..io.raw_file import mask_label
from ..pipeline.calibrated import load_calibration
from ..pipeline.pipeline_sgr_mri import SGRMRIPipeline
from ..reconstruction.demo import CASE, COVERAGE
from ..reconstruction.volume import can_be_fast, load_pipeline
from .downloads import write_downloads
from .limits import AppLimits, RunStopped
from .runs import CaseResult, RunRequest, SliceRequest, preview_slice, read_isolated, run_isolated
from .uploads import CaseInfo, describe_case
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

__all__ = ["BUNDLED", "MODELS", "N_RESULT_FIELDS", "OWN", "READY", "PageEvents", "sampling_choices", "slice_range"]

BUNDLED, OWN = "Synthetic knee (comes with the app)", "My own file"
AS_IS = "as it is"
MODELS = {  # bundled checkpoints by what they are for, the one of the bundled case first
    "synthetic_knee": "a synthetic knee of this package",
    "general": "a real knee",
    "brain_tumour": "a brain with a tumour",
}
READY = "Choose a case and press Run: both bounds of each tissue appear below."
_STOPPED = "The run was stopped."
_OUTDATED = "The result below is of other settings. Press Run to renew it."
N_RESULT_FIELDS = 11  # as `reconstruct` returns them after problem and status


class PageEvents:
    """Answers the events of all visitors of one server.

    Args:
        pipe: pipeline with a segmentation model that names its classes.
        limits: limits on what a visitor may ask for.
        visits: visitors and their folders.
        is_default: whether `pipe` is the default, so that files can also be reconstructed by the other bundled models.
    """

    def __init__(self, pipe: SGRMRIPipeline, limits: AppLimits, visits: Visits, is_default: bool = False):
        """Look into the bundled case."""
        self.limits, self.visits = limits, visits
        self.models = list(MODELS) if is_default else [next(iter(MODELS))]
        self._pipes = {self.models[0]: pipe}
        self.read_safely = partial(read_isolated, limits=limits)
        self.bundled = describe_case(CASE, AppLimits(), "synthetic_knee.h5")

    def pipe_of(self, model: str) -> SGRMRIPipeline:
        """Return the pipeline of a model, one of `models`; it is loaded when it is first asked for."""
        if model not in self._pipes:
            device = str(self._pipes[self.models[0]].device)
            self._pipes[model] = load_pipeline(model, device)
        return self._pipes[model]

    def offers(self, model: str, by_default: bool) -> list[dict[str, Any]]:
        """Properties of the fields of tissues, interval and spacing of the steps, by what a model can do.

        Args:
            model: one of `models`.
            by_default: whether the interval is chosen where the model is calibrated.
        """
        pipe = self.pipe_of(model)
        names, is_fast, is_calibrated = list(pipe.class_names or ()), can_be_fast(pipe), _is_calibrated(pipe)
        return [
            {"choices": [(tissue_label(name), name) for name in names], "value": names},
            {"value": is_calibrated and by_default, "visible": is_calibrated},
            {"value": is_fast, "visible": is_fast},
        ]

    def choose_source(self, source: str) -> list[Any]:
        """Choose the model of the bundled case, or that of real knees for a file, for which the others are offered."""
        import gradio as gr

        model = self.models[0] if source == BUNDLED else self.models[:2][-1]
        offers = self.offers(model, by_default=source == BUNDLED)
        choice = gr.update(value=model, visible=source == OWN and len(self.models) > 1)
        return [choice, *(gr.update(**properties) for properties in offers)]

    def choose_model(self, model: str) -> tuple[Any, ...]:
        """Offer what the model for a file can do; an earlier result is hidden."""
        import gradio as gr

        offers = [gr.update(**properties) for properties in self.offers(model, by_default=False)]
        return (*offers, message(READY), gr.update(visible=False))

    def choose_case(self, source: str, upload: str | None) -> tuple[Any, ...]:
        """Look into the case chosen, and offer what it has; an earlier result is hidden."""
        import gradio as gr

        new: CaseInfo | None = self.bundled
        problem = ""
        if source == OWN:
            try:
                new = None if upload is None else self.read_safely(describe_case, upload, self.limits)
            except ValueError as error:
                new, problem = None, str(error)
        text = message(self._choose_one) if new is None else case_summary(new)
        n_echoes = 1 if new is None else new.n_echoes
        return (
            new,
            problem,
            gr.update(visible=source == OWN),
            message(problem, "error") if problem else text,
            gr.update(visible=new is not None and new.voxel_size_mm is None),
            gr.update(**sampling_choices(new)),
            gr.update(**slice_range(new)),
            gr.update(choices=list(range(1, n_echoes + 1)), value=1, visible=n_echoes > 1),
            message(READY),
            gr.update(visible=False),
        )

    @property
    def _choose_one(self) -> str:
        return (
            "Choose a file of raw k-space: of SKM-TEA, fastMRI or ISMRMRD (.h5), or an array of numpy (.npy, .npz); "
            f"at most {self.limits.max_upload_mb:g} MB."
        )

    @staticmethod
    def complain(problem: str) -> None:
        """Show a toast beside the text that stays: the former is seen, the latter can be read."""
        import gradio as gr

        if problem:
            raise gr.Error(problem, print_exception=False)

    @staticmethod
    def mark_outdated(result: CaseResult | None) -> Any:
        """Say that the result does not belong to the settings chosen."""
        import gradio as gr

        return gr.skip() if result is None else message(_OUTDATED)

    def show_preview(self, *measurement: Any) -> str:
        """Show the slice as it was measured."""
        try:
            request = _slice_request(*measurement)
            if request is None:
                return ""
            scan, zero_filled, fully_sampled = self.read_safely(preview_slice, request)
        except ValueError as error:
            return message(str(error), "error")
        return preview_view(zero_filled, fully_sampled, scan.voxel_size_mm, scan.orientation, scan.label)

    @staticmethod
    def begin() -> tuple[Any, ...]:
        """Offer to stop rather than to run."""
        import gradio as gr

        return gr.update(interactive=False), gr.update(visible=True), ""  # a text would lie under the progress bar

    @staticmethod
    def end() -> tuple[Any, ...]:
        """Offer to run again."""
        import gradio as gr

        return gr.update(interactive=True), gr.update(visible=False)

    def reconstruct(
        self,
        visitor: str,
        report: Callable[..., None],
        model: str,
        chosen: list[str],
        interval: bool,
        n_steps: float,
        fast: bool,
        strength: float,
        seed: float | None,
        *measurement: Any,
    ) -> tuple[Any, ...]:
        """Run, and fill the fields of the result.

        Args:
            visitor: name of the visitor's session.
            report: gradio's progress; called with a share or with steps done and their number, and `desc`.
            model: model to use, one of `models`.
            chosen: names of the tissues.
            interval: whether to make calibrated intervals.
            n_steps: number of steps; this and the rest are values of the fields.
        """
        import gradio as gr

        flag = self.visits.begin_run(visitor)
        report(0, desc="Reading")
        unchanged = [gr.skip()] * N_RESULT_FIELDS
        try:
            slice_request = _slice_request(*measurement)
            if slice_request is None:
                raise ValueError("There is no file to reconstruct. Choose one first.")
            pipe = self.pipe_of(model)
            names = tuple(name for name in pipe.class_names or () if name in chosen)
            settings = (int(n_steps), can_be_fast(pipe) and bool(fast), float(strength), int(seed or 0))
            new = run_isolated(
                pipe,
                RunRequest(slice_request, names, *settings, coverage=COVERAGE if interval else None),
                self.limits,
                lambda done, total, left: report((done, total), desc=progress_view(done, total, left)),
                flag.is_set,
            )
            files = write_downloads(new, self.visits.new_folder(visitor))
        except RunStopped:
            return "", message(_STOPPED), *unchanged
        except ValueError as error:  # RunRefused among them
            return str(error), message(str(error), "error"), *unchanged
        rows = new.rows()
        largest = max(rows, key=lambda row: row["upper_mm3"])["class"]
        choices = [(tissue_label(name), name) for name in new.bounds.classes]
        return (
            "",
            message("Done: the result is below.", "done"),
            new,
            gr.update(visible=True),
            gr.update(visible=False),
            headline_view(new),
            gr.update(choices=choices, value=largest),
            gr.update(value=True),
            *result_views(new, largest, zoom=True),
            interval_plot(rows, new.request.coverage, len(new.scan.slice_indices)),
            *(gr.update(value=str(file)) for file in files),
        )

    @staticmethod
    def draw(result: CaseResult | None, class_name: str | None, zoom: bool) -> tuple[Any, Any]:
        """Draw another tissue, or another part of the slice."""
        import gradio as gr

        if result is None or class_name not in result.bounds.classes:
            return gr.update(), gr.update()
        return result_views(result, class_name, zoom)

    def stop(self, visitor: str) -> tuple[Any, ...]:
        """Stop the visitor's run."""
        import gradio as gr

        self.visits.stop(visitor)
        return gr.update(interactive=True), gr.update(visible=False), message(_STOPPED)


def _is_calibrated(pipe: SGRMRIPipeline) -> bool:
    """Whether a pipeline comes from a checkpoint with a calibration."""
    try:
        load_calibration(pipe.name_or_path, local_files_only=True)
    except CalibrationMismatch:
        return False
    return True


def sampling_choices(case: CaseInfo | None) -> dict[str, Any]:
    """List the accelerations, and choose one: 8x where it is stored, as in the figures of the paper."""
    masks = () if case is None else case.masks
    value = next((name for name in masks if name == "poisson_8.0x"), masks[0] if masks else AS_IS)
    return {"choices": [*((mask_label(name), name) for name in masks), (AS_IS, AS_IS)], "value": value}


def slice_range(case: CaseInfo | None) -> dict[str, Any]:
    """Set the ends of the slider of slices, and choose the one in the middle."""
    n_slices = 1 if case is None else case.n_slices
    label = f"Slice (0 to {n_slices - 1})"
    return {
        "minimum": 0, "maximum": max(n_slices - 1, 1), "value": n_slices // 2, "label": label, "visible": n_slices > 1
    }  # fmt: skip


def _slice_request(
    case: CaseInfo | None, slice_number: float, sampling: str, echo: float, *edges: float | None
) -> SliceRequest | None:
    """Make the request for a slice from the fields of the page; `None` without a case."""
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
