"""The error a person can act on."""


class TowerlineError(Exception):
    """What went wrong, which field or file and value, and the next step, in one message.

    Jobs print it without a traceback and exit with status 2; the HTTP endpoint turns it into problem JSON.
    Anything else that is raised is a defect of Towerline and keeps its traceback.
    """
