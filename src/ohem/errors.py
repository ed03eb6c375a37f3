"""The one exception that a person's input can raise; the command line prints it as one sentence and exits with 2."""


class InputError(ValueError):
    """Bad input: one sentence that names the file, the field and the remedy."""
