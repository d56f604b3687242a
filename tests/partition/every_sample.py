"""All sample calls: importing this fills `samples.CASES` and `samples.POINTWISE`."""

from tests.partition import (  # noqa: F401
    samples_of_dimensions,
    samples_of_elements,
    samples_of_layers,
    samples_of_products,
    samples_of_views,
)
