"""Shared fixtures; switches on run-time checks of the jaxtyping annotations for everything the tests import."""

import pytest
import torch
from jaxtyping import config, install_import_hook

install_import_hook("sgr_diffusers", "beartype.beartype")
torch.set_num_threads(1)  # the tests' tensors are tiny, and `make test` runs a process for each core


@pytest.fixture
def unchecked_types():
    """Run without the checks of annotations, as users do, so that wrong types reach the checks of the package."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def hub():
    """A Hub on this machine, with the users of `hub_client`."""
    from tests.helpers.hub_client import OWNER, READER
    from tests.helpers.local_hub import local_hub

    with local_hub() as server:
        server.tokens.update({OWNER: "org", READER: "reader"})
        server.read_only.add(READER)
        yield server


@pytest.fixture(scope="session")
def worker(hub, tmp_path_factory):
    """A client of it, in a process of its own."""
    from tests.helpers.hub_client import Worker

    one = Worker(tmp_path_factory.mktemp("worker"), hub.url)
    yield one
    one.close()
