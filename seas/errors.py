"""The one kind of error that is the user's to mend."""


class InputError(Exception):
    """A fault in what the user gave (settings, data, weights, disk).

    Its message is one clear sentence that names the file or the key; it is printed
    without a traceback, and the program ends with a non-zero status.
    """
