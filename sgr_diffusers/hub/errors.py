"""Turns errors of the Hub and the network into an `OSError` of one line, without tokens."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["hub_errors", "redact"]


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Within this context a Hub that refuses, or cannot be reached, is an `OSError` that says so.

    What huggingface_hub raises itself is one already; a connection that fails is an error of the library that speaks
    HTTP for it, which is httpx or httpx2 by its version.

    Args:
        what: object that was asked for, such as the name of a repository.

    Raises:
        OSError: the Hub refuses; a `ConnectionError` where it cannot be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    of_connection: Any = HfHubHTTPError.__bases__
    try:
        yield
    except HfHubHTTPError as error:
        raise OSError(f"the Hub refuses {what}: {redact(_one_line(error))}") from None
    except OSError:
        raise
    except of_connection as error:
        reason = redact(_one_line(error)) or type(error).__name__
        raise ConnectionError(f"{what}: the Hub at {constants.ENDPOINT} cannot be reached ({reason}).") from None


def redact(text: str) -> str:
    """Remove tokens from a text."""
    from huggingface_hub import get_token

    token = os.environ.get("HF_TOKEN") or get_token()
    text = text.replace(token, "hf_***") if token else text
    return re.sub(r"(hf_|api_org_)[A-Za-z0-9]{8,}", r"\1***", text)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
