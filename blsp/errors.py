"""The one exception for what a user can mend."""


class BlspError(ValueError):
    """Bad input or a bad setting; the message names the file, the key or row, what was found and the remedy.

    The command line prints the message alone and exits with status 1.
    """
