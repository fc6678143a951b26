"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """A config, data set, checkpoint or argument that cannot be used.

    The message is complete as it stands: it names the field or file, its value, the rule and the
    remedy. The command lines print it without a traceback and exit with code 2.
    """
