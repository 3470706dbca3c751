# Made from the Python package sgr_diffusers (Apache-2.0) by `sgr publish bundle`.
# To change it, change the package.
"""Annotations of arrays, for the reader: jaxtyping, which would check them, is not needed."""


class AnyArray:
    """`AnyArray[Tensor, "y x"]` is a `Tensor`; data type and shape are for the reader."""

    def __class_getitem__(cls, item):
        """The type of array alone."""
        return item[0]


Bool = Complex = Float = Inexact = Int = Shaped = UInt8 = AnyArray
