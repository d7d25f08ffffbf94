"""What surrounds one job of the workflow: its log, and faults told in one sentence."""

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from seas.errors import InputError
from seas.runs import watch_run


class _Tee:
    """A text stream that writes to the screen, on a cluster a file, and to a log. A full disk costs lines of both, never the
    job; and a thread that ends after the log was closed may still speak."""

    def __init__(self, screen: TextIO, log: TextIO) -> None:
        self._screen, self._log = screen, log

    def write(self, text: str) -> int:
        for stream in (self._screen, self._log):
            with suppress(OSError, ValueError):
                stream.write(text)
        return len(text)

    def flush(self) -> None:
        for stream in (self._screen, self._log):
            with suppress(OSError, ValueError):
                stream.flush()

    def isatty(self) -> bool:
        return False


def fault_sentence(fault: BaseException) -> str | None:
    """The sentence for a fault that is the user's to mend, or None for a fault of the program."""
    if isinstance(fault, InputError):
        return str(fault)
    if isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space is left on the disk{_at(fault)}; make room and start again, finished work is kept"
    if isinstance(fault, OSError) and fault.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"no permission to write or read{_at(fault)}"
    if isinstance(fault, OSError) and fault.filename:
        return f"{fault.filename}: {fault.strerror}"
    if type(fault).__name__ == "OutOfMemoryError":  # torch's, which a job without a network never imports
        return (
            f"the GPU's memory is too small ({str(fault).split('. ')[0]}); a generator needs less with config/card_24gb.yaml or "
            "config/card_12gb.yaml laid over the configuration (--configfile), every stage with a smaller batch or image_size"
        )
    if "No space left on device" in str(fault):
        return "no space is left on the disk; make room and start again, finished work is kept"
    return None


def _at(fault: OSError) -> str:
    return f" at {fault.filename}" if fault.filename else ""


@contextmanager
def reporting_faults() -> Iterator[None]:
    """End the program with one sentence on a fault of the user's input, for the command line."""
    try:
        yield
    except Exception as fault:
        sentence = fault_sentence(fault)
        if sentence is None:
            raise
        print(f"seas: {sentence}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def job(log: str) -> Iterator[None]:
    """Run a stage with its output on the screen and in ``log``.

    A fault ends the job with one sentence on the screen; the traceback of an unexpected one lies beside the log.
    """
    watch_run()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    path = Path(log)
    file = _opened(path)
    stdout, stderr = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Tee(stdout, file), _Tee(stderr, file)
    try:
        yield
    except Exception as fault:
        sentence = fault_sentence(fault)
        if sentence is None:
            details = path.with_suffix(".traceback")
            with suppress(OSError):
                details.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
            sentence = f"{type(fault).__name__}: {fault} (an error of the program; its traceback is {details})"
        print(f"seas: {sentence}", file=sys.stderr, flush=True)
        # os._exit would lose buffered output; SystemExit leaves Snakemake's own wrapper no traceback to print.
        sys.exit(1)
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        with suppress(OSError):
            file.close()


def _opened(path: Path) -> TextIO:
    """The log's file, or nowhere when it cannot be written: what the stage writes will tell why."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "w")
    except OSError:
        return open(os.devnull, "w")
