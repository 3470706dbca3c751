"""Raw data through a socket and bounds back, by the streaming protocol of the package ismrmrd."""

import json
import socket
import threading
import warnings

import numpy as np
import pytest

from sgr_diffusers.interop.mrd_server import process
from tests.helpers.raw_files import acquisition, body_image, fft, header_xml
from tests.helpers.tiny_pipeline import save_tiny_pipeline

with warnings.catch_warnings():
    import ismrmrd
    from ismrmrd.serialization import ConfigFile, ProtocolDeserializer, ProtocolSerializer
    from ismrmrd.xsd import CreateFromDocument

N_SLICES, N_Y, N_X = 2, 16, 12


class Connection:
    """What python-ismrmrd-server hands to a module, on the protocol of the package ismrmrd."""

    def __init__(self, stream):
        self.messages, self.out = ProtocolDeserializer(stream).deserialize(), ProtocolSerializer(stream)

    def __iter__(self):
        yield from self.messages
        yield None

    def send_image(self, images):
        for image in images if isinstance(images, list) else [images]:
            self.out.serialize(image)

    def send_logging(self, level, contents):
        self.out.serialize(f"{level} {contents}")

    def send_close(self):
        self.out.close()


def serve(listener, errors, read):
    """One connection, as the server takes it: configuration, header, additional configuration (read by it), module."""
    with listener.accept()[0] as sock, sock.makefile("rwb") as stream:
        connection = Connection(stream)
        config, header = next(connection.messages), next(connection.messages)
        assert config == "sgr"
        try:
            process(connection, read(next(connection.messages)), header)
        except Exception as error:  # the server logs it
            errors.append(error)


def measurement(last="ACQ_LAST_IN_MEASUREMENT"):
    kspace = fft(np.stack([body_image(N_Y, N_X), 2 * body_image(N_Y, N_X)])[:, None] * [[[1]], [[1j]]], (-2, -1))
    lines = []
    for number, plane in enumerate(kspace):
        for row in range(N_Y):
            is_last = (number, row) == (N_SLICES - 1, N_Y - 1)
            flags = [last] if is_last and last else []
            lines.append(
                acquisition(plane[:, row], row, slice=number, position=(10, 20, 30 + 3 * number), flags=flags)
            )
    return lines


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_pipeline(tmp_path_factory.mktemp("model") / "pipeline"))


@pytest.fixture
def send(model):
    """Send a measurement to the module; what comes back, and the errors that the server saw."""

    def call(lines, cut_at=None, read=json.loads, **parameters):
        errors = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            server = threading.Thread(target=serve, args=(listener, errors, read))
            server.start()
            with socket.create_connection(listener.getsockname()) as sock, sock.makefile("rwb") as stream:
                client = ProtocolSerializer(stream)
                client.serialize(ConfigFile("sgr"))
                client.serialize(CreateFromDocument(header_xml((N_X, N_Y, 1), (N_X, N_Y, 1))))
                given = {"model": model, "num_inference_steps": 2, "customconfig": "", **parameters}
                client.serialize(json.dumps({"parameters": given}))
                for number, line in enumerate(lines):
                    if number == cut_at:
                        stream.write(line.to_bytes()[:100])  # without an end
                        break
                    client.serialize(line)
                else:
                    client.close()
                stream.flush()
                sock.shutdown(socket.SHUT_WR)
                answers = list(ProtocolDeserializer(stream).deserialize())
            server.join(timeout=60)
        images = [answer for answer in answers if isinstance(answer, ismrmrd.Image)]
        return images, [answer for answer in answers if isinstance(answer, str)], errors

    return call


def test_bounds_come_back_as_series_with_their_meaning(send):
    images, texts, errors = send(measurement(), classes=["meniscus", "femoral_cartilage"])
    assert not texts and not errors
    series = {}
    for image in images:
        series.setdefault(image.image_series_index, []).append(image)
    assert [len(images) for images in series.values()] == [N_SLICES] * 8  # two classes, bounds, roles
    names, scales = [], set()
    for number, (first, second) in series.items():
        meta = ismrmrd.Meta.deserialize(first.attribute_string)
        names.append(meta["SequenceDescriptionAdditional"])
        assert meta["DataRole"] == ("Image", "Segmentation")[(number - 1) % 2]
        assert float(meta["SGR_volume_mm3_" + names[-1].removeprefix("SGR_").rsplit("_", 2)[0]]) >= 0
        assert (first.slice, second.slice) == (0, 1) and first.data.shape == (1, 1, N_Y, N_X)
        np.testing.assert_allclose(second.position[:], (10, 20, 33), atol=1e-3)
        np.testing.assert_allclose((first.read_dir[:], first.phase_dir[:]), ((1, 0, 0), (0, 1, 0)))
        np.testing.assert_allclose(first.field_of_view[:], (N_X * 1.5, N_Y * 2.0, 3.0))
        scales |= {meta["SGR_scale"]} if "SGR_scale" in meta else set()
    assert names[:2] == ["SGR_meniscus_lower_Image", "SGR_meniscus_lower_Segmentation"] and len(scales) == 1


def test_the_image_is_that_of_the_raw_data(send):
    images, texts, errors = send(measurement(), target="none", cg_iterations=30)
    assert not texts and not errors
    magnitudes = np.stack([image.data[0, 0] for image in images if image.image_series_index == 1]).astype(float)
    expected = np.stack([body_image(N_Y, N_X).real, 2 * body_image(N_Y, N_X).real])
    assert np.corrcoef(magnitudes.ravel(), expected.ravel())[0, 1] > 0.99
    assert ismrmrd.Meta.deserialize(images[0].attribute_string)["DataRole"] == "Image"


@pytest.mark.parametrize("read", [json.loads, str])
def test_parameters_may_be_texts_as_scanners_send_them(send, read):
    texts = {"classes": "meniscus femoral_cartilage", "num_inference_steps": "2", "fast": "False"}
    images, answers, errors = send(measurement(), read=read, **texts)
    assert not answers and not errors
    assert len(images) == N_SLICES * 8


@pytest.mark.parametrize(
    ("lines", "arguments", "message"),
    [
        (measurement(), {"cut_at": 9}, "the stream was cut short"),  # in the middle of an acquisition
        (measurement()[:20], {}, "cut short: its last acquisition must have one of the flags"),
        ([], {}, "cut short.* there is none"),
        (measurement(last=None), {}, "that of line 15 has not"),
        (measurement(), {"colour": "red"}, "`parameters` may hold .* got .'colour'. among them"),
        (measurement(), {"target": "sideways"}, "`target` must be one of"),
        (measurement(), {"num_inference_steps": "many"}, "`num_inference_steps` must be a whole number .* got 'many'"),
        (measurement(), {"fast": "perhaps"}, "`fast` must be true or false, got 'perhaps'"),
        ([ismrmrd.Image.from_array(np.zeros((4, 4), np.float32))], {}, "must hold raw data, got Image"),
    ],
)
def test_nothing_is_sent_but_the_reason(send, lines, arguments, message):
    images, (text,), (error,) = send(lines, **arguments)
    assert not images and text == f"ERROR {error}"
    with pytest.raises(ValueError, match=message):
        raise error
