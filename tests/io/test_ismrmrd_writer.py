import numpy as np
import pytest

from sgr_diffusers.io.ismrmrd_writer import write_ismrmrd_images


@pytest.mark.parametrize("dtype", [np.complex64, np.float32, np.uint16])
def test_images_go_out_and_come_back(tmp_path, dtype):
    import ismrmrd

    volume = (100 * np.random.default_rng(0).random((3, 5, 4))).astype(dtype)
    affine = np.array([[0, 0, -1.5, 3], [0, -2.0, 0, 4], [4.0, 0, 0, 5], [0, 0, 0, 1]])
    path = tmp_path / "a.h5"
    write_ismrmrd_images(path, volume, (4.0, 2.0, 1.5), affine=affine)
    write_ismrmrd_images(path, volume[:1], (4.0, 2.0, 1.5), ("SI", "AP", "LR"), series="image_1")
    write_ismrmrd_images(path, volume[:1], None, series="image_2")
    with ismrmrd.Dataset(str(path), "dataset", mode="r") as dataset:
        assert dataset.number_of_images("image_0") == 3 and dataset.number_of_images("image_1") == 1
        for number in range(3):
            image = dataset.read_image("image_0", number)
            np.testing.assert_array_equal(image.data[0, 0], volume[number])
            assert image.slice == number
            np.testing.assert_allclose(tuple(image.read_dir), (1, 0, 0))  # to the left: of NIfTI's x, minus
            np.testing.assert_allclose(tuple(image.phase_dir), (0, 1, 0))
            np.testing.assert_allclose(tuple(image.slice_dir), (0, 0, 1))
            centre = affine @ [number, 2, 2, 1]
            np.testing.assert_allclose(tuple(image.position), (-centre[0], -centre[1], centre[2]))
            np.testing.assert_allclose(tuple(image.field_of_view), (6.0, 10.0, 4.0))
        image = dataset.read_image("image_1", 0)  # the middle of the volume is the origin
        directions = [tuple(image.slice_dir), tuple(image.phase_dir), tuple(image.read_dir)]
        np.testing.assert_allclose(directions, [(0, 0, -1), (0, 1, 0), (-1, 0, 0)])
        np.testing.assert_allclose(tuple(image.position), (-0.75, 0, 0))  # of the pixel (2, 2) of 5 x 4
        image = dataset.read_image("image_2", 0)  # nothing is known, and nothing is claimed
        for vector in (image.slice_dir, image.phase_dir, image.read_dir, image.position, image.field_of_view):
            assert tuple(vector) == (0, 0, 0)
    with pytest.raises(ValueError, match="`orientation`"):
        write_ismrmrd_images(path, volume, (4.0, 2.0, 1.5), orientation=("SI", "SI", "LR"))
    with pytest.raises(TypeError, match="complex64, float32 or uint16, got float64"):
        write_ismrmrd_images(path, volume.real.astype(np.float64), (1.0, 1.0, 1.0))
