"""What a Space runs: the page of `sgr app`, for the first model that the Space's card names."""

import os
from pathlib import Path

from huggingface_hub import SpaceCard

from sgr_diffusers.app.limits import AppLimits
from sgr_diffusers.app.server import launch_app


def model_of_the_space() -> str | None:
    """The variable SGR_MODEL of the Space, else the card's first model; `None` for the one of the package."""
    models = SpaceCard.load(Path(__file__).with_name("README.md")).data.get("models") or []
    return os.environ.get("SGR_MODEL") or (models[0] if models else None)


if __name__ == "__main__":
    # A Space's free machine has two cores: what takes longer is refused with a message.
    launch_app(model_of_the_space(), limits=AppLimits(max_upload_mb=200, max_content_mb=1000, max_minutes=10))
