"""Files: raw k-space of several formats is read, images are written as NIfTI and ISMRMRD."""
