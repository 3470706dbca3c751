"""Small raw files in the formats of others, made of one known image: what the readers' tests compare with."""

import warnings
from pathlib import Path

import h5py
import numpy as np

with warnings.catch_warnings():
    import ismrmrd

XML = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
 <acquisitionSystemInformation>
  <receiverChannels>{coils}</receiverChannels>
  <relativeReceiverNoiseBandwidth>1</relativeReceiverNoiseBandwidth>
 </acquisitionSystemInformation>
 <experimentalConditions><H1resonanceFrequency_Hz>128000000</H1resonanceFrequency_Hz></experimentalConditions>
 <encoding>
  <encodedSpace>
   <matrixSize><x>{encoded[0]}</x><y>{encoded[1]}</y><z>{encoded[2]}</z></matrixSize>
   <fieldOfView_mm><x>{encoded_fov[0]}</x><y>{encoded_fov[1]}</y><z>{encoded_fov[2]}</z></fieldOfView_mm>
  </encodedSpace>
  <reconSpace>
   <matrixSize><x>{recon[0]}</x><y>{recon[1]}</y><z>{recon[2]}</z></matrixSize>
   <fieldOfView_mm><x>{recon_fov[0]}</x><y>{recon_fov[1]}</y><z>{recon_fov[2]}</z></fieldOfView_mm>
  </reconSpace>
  <encodingLimits>
   <kspace_encoding_step_1>
    <minimum>0</minimum><maximum>{maximum_1}</maximum><center>{center_1}</center>
   </kspace_encoding_step_1>
   <kspace_encoding_step_2>
    <minimum>0</minimum><maximum>{maximum_2}</maximum><center>{center_2}</center>
   </kspace_encoding_step_2>
   {slices}
  </encodingLimits>
  <trajectory>{trajectory}</trajectory>
  {parallel}
 </encoding>
</ismrmrdHeader>
"""


def header_xml(
    encoded,
    recon,
    *,
    coils=2,
    center_1=None,
    center_2=None,
    maximum_1=None,
    fov=None,
    recon_fov=None,
    trajectory="cartesian",
    mode=None,
    n_slices=None,
):
    """Pixels of 1.5 x 2 x 3 mm unless `fov` (of the encoded space) says otherwise."""
    fov = fov or (encoded[0] * 1.5, encoded[1] * 2.0, encoded[2] * 3.0)
    return XML.format(
        coils=coils,
        encoded=encoded,
        recon=recon,
        encoded_fov=fov,
        recon_fov=recon_fov or (fov[0] * recon[0] / encoded[0], fov[1], fov[2]),
        maximum_1=encoded[1] - 1 if maximum_1 is None else maximum_1,
        maximum_2=encoded[2] - 1,
        center_1=encoded[1] // 2 if center_1 is None else center_1,
        center_2=encoded[2] // 2 if center_2 is None else center_2,
        trajectory=trajectory,
        slices=""
        if n_slices is None
        else f"<slice><minimum>0</minimum><maximum>{n_slices - 1}</maximum><center>0</center></slice>",
        parallel=""
        if mode is None
        else "<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>"
        "<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor>"
        f"<calibrationMode>{mode}</calibrationMode></parallelImaging>",
    )


def fft(array, axes):
    shifted = np.fft.ifftshift(array, axes=axes)
    return np.fft.fftshift(np.fft.fftn(shifted, axes=axes, norm="ortho"), axes=axes).astype(np.complex64)


def body_image(n_y, n_x):
    """A bright ellipse with a dark one in it, (y, x): its k-space has a peak at the centre, as a body's has."""
    y, x = ((np.arange(n) - n // 2) / (n / 2) for n in (n_y, n_x))
    y, x = y[:, None], x[None, :]
    body, hole = (x / 0.6) ** 2 + (y / 0.8) ** 2 < 1, (x - 0.15) ** 2 / 0.04 + (y + 0.2) ** 2 / 0.09 < 1
    return (1.0 * body - 0.5 * hole).astype(np.complex64)


def random_complex(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


def acquisition(line, step_1, step_2=0, *, slice=0, contrast=0, center=None, flags=(), position=(0, 0, 0), **fields):
    """A readout `(coil, sample)`; directions: readout to the left, phase to posterior, slice to superior."""
    one = ismrmrd.Acquisition.from_array(np.ascontiguousarray(line, np.complex64))
    one.center_sample = line.shape[1] // 2 if center is None else center
    one.idx.kspace_encode_step_1, one.idx.kspace_encode_step_2 = step_1, step_2
    one.idx.slice, one.idx.contrast = slice, contrast
    one.read_dir[:], one.phase_dir[:], one.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    one.position[:] = position
    one.sample_time_us = 5.0
    for name, value in fields.items():
        if name.endswith("_dir"):
            getattr(one, name)[:] = value
        elif name in ("repetition", "average", "phase", "set"):
            setattr(one.idx, name, value)
        else:
            setattr(one, name, value)
    for flag in flags:
        one.set_flag(getattr(ismrmrd, flag))
    return one


def write_ismrmrd(path: Path, xml: str, acquisitions, group="dataset") -> Path:
    with ismrmrd.Dataset(str(path), group) as dataset:
        dataset.write_xml_header(xml.encode())
        for one in acquisitions:
            dataset.append_acquisition(one)
    return path


def write_fastmri(path: Path, kspace, xml: str, mask=None) -> Path:
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file["ismrmrd_header"] = xml
        file["reconstruction_rss"] = np.zeros((len(kspace), 4, 4), np.float32)
        if mask is not None:
            file["mask"] = mask
    return path


def write_cfl(path: Path, array) -> Path:
    """`array` in BART's order of axes."""
    path.with_suffix(".hdr").write_text("# Dimensions\n" + " ".join(map(str, array.shape)) + " \n")
    path.with_suffix(".cfl").write_bytes(np.asarray(array, np.complex64).tobytes(order="F"))
    return path.with_suffix(".cfl")
