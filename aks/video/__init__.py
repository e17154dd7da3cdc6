"""Reading videos: which frames are candidates, and their pixels."""

RATE_TOLERANCE = 0.05  # relative difference of a header's frame rate from the rate that the pts give
# The default time limit of a video: a slow, loaded machine needs so much for a film at 4K, and to open it.
TIMEOUT_S, TIMEOUT_PER_SECOND = 60.0, 4.0


def default_timeout_s(duration_s: float) -> float:
    """Seconds that reading a video of so many seconds may take."""
    return TIMEOUT_S + TIMEOUT_PER_SECOND * duration_s
