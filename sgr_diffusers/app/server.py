"""Runs the web server that shows the page for a model, and deletes uploads and results when the server ends."""

import os
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ..reconstruction.volume import load_pipeline
from .limits import AppLimits

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["launch_app"]


def _check_host(host: str) -> None:
    """Refuse an address at which this machine cannot listen; gradio would try one port after the other.

    Raises:
        ValueError: naming the address.
    """
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"`host` {host!r} is no address of this machine ({error}). Leave it out for this machine alone, or give "
            "0.0.0.0 for all of its networks."
        ) from error


def launch_app(
    model: str | None = None,
    device: str | None = None,
    limits: AppLimits | None = None,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Serve the page until the process is stopped.

    Nothing is sent anywhere: no analytics, no version check, no fonts or scripts from other servers.

    Args:
        model: folder or Hub repository of a pipeline; `None` for the bundled one.
        device: device of the networks; `None` for a GPU if there is one.
        limits: limits on what a visitor may ask for; `None` for the defaults.
        host: address to listen at; `None` for the default of gradio: this machine alone, or what a Space sets.
        port: port of the server; `None` for the first that is free from 7860 on.

    Raises:
        ValueError: gradio is not installed, or the model cannot be used.
        OSError: the port is taken.
    """
    limits = limits or AppLimits()
    if host is not None:
        _check_host(host)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    try:
        import gradio as gr
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(
            "the app needs gradio, which is not installed. Install it by: pip install 'sgr-diffusers[app]'"
        ) from error
    from .isolation import start_isolation
    from .page import build_page

    start_isolation()
    pipe = load_pipeline(model, device)
    if pipe.segmentation_model is None or not pipe.class_names:
        raise ValueError("`model` must have a segmentation model that names its classes: there is nothing to bound.")
    with _temporary_folder() as folder:
        page = build_page(pipe, limits, folder, is_default=model is None)
        page.queue(max_size=limits.max_queue, api_open=False)
        try:
            page.launch(
                server_name=host,
                server_port=port,
                share=False,
                quiet=True,  # without gradio's advice to share the page
                prevent_thread_lock=True,
                ssr_mode=False,
                enable_monitoring=False,
                footer_links=[],
                max_file_size=round(limits.max_upload_mb * 1e6),
                max_threads=8,
                theme=gr.themes.Default(
                    primary_hue="blue", font=("ui-sans-serif", "system-ui", "sans-serif"), font_mono=("monospace",)
                ),
                css_paths=Path(__file__).with_name("page.css"),
            )
            print(f"The page is at {page.local_url} until you press Ctrl-C.", flush=True)
            page.block_thread()
        finally:
            page.close(verbose=False)


@contextmanager
def _temporary_folder() -> "Iterator[Path]":
    """A folder for uploads and results that goes with the server."""
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="sgr_app_", ignore_cleanup_errors=True) as name:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(name) / "gradio")
        try:
            yield Path(name)
        finally:
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before
