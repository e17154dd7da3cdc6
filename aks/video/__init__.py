"""Reading videos: which frames are candidates, and their pixels."""

RATE_TOLERANCE = 0.05  # relative, of a stated frame rate against the frames over the seconds they last
