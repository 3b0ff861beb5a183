"""Errors for a person, and their exit codes.

2 for wrong input, 1 for a run that failed, 75 where a process of a run has lost another one, 130 and 143
for an interrupt and a terminate signal.
"""

import errno

WRONG_INPUT = 2
FAILED_RUN = 1
LOST_PROCESS = 75  # of a process that ends because another one of the run has
INTERRUPTED = 130
TERMINATED = 143


class UserError(Exception):
    """One line for a person: what is wrong; what to do. Further lines list the files that it is about."""

    def __init__(self, message: str, code: int = WRONG_INPUT) -> None:
        super().__init__(message)
        self.code = code


class Echo(UserError):
    """An error that another process of the run reports: this one ends with the code and prints nothing."""


def explain(error: BaseException) -> UserError | None:
    """Translate errors of disks and devices into a line for a person; None for any other."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError):
        return UserError("out of memory; try a smaller --batch-size or model", FAILED_RUN)
    if "DefaultCPUAllocator: can't allocate memory" in str(error):
        return UserError("out of memory on the CPU; try a smaller --batch-size or model", FAILED_RUN)
    return None


def _explain_os_error(error: OSError) -> UserError | None:
    where = f" ({error.filename})" if error.filename else ""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            what = f"the disk is full{where}; free some space and try again (train continues with --resume)"
            return UserError(what, FAILED_RUN)
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return UserError(f"no permission to use {error.filename}; choose another folder", FAILED_RUN)
        case errno.ENOENT:
            return UserError(f"no such file or folder: {error.filename}")
        case errno.EISDIR | errno.ENOTDIR | errno.EEXIST | errno.ENAMETOOLONG:
            return UserError(f"{error.filename}: {error.strerror}; check the path")
    return None
