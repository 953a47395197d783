"""The one exception that a user's mistake raises; commands print its sentence and exit with code 2."""


class UserError(Exception):
    """One clear sentence for the user: what is wrong, where, and what to do about it."""
