"""Files of a data set that do not hold what they should."""


class MalformedFileError(OSError, ValueError):
    """A file met in training is not one of the data set's format."""
