"""Reading videos: which frames are candidates, and their pixels."""

RATE_TOLERANCE = 0.05  # relative difference of a header's frame rate from the rate that the pts give
