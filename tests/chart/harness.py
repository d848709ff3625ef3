"""Counts checks and prints a line for each; the last line is in cargo's form, which `make test` adds up."""

import sys
import time
import traceback
from contextlib import contextmanager


class Skip(Exception):
    """Raised by a check that can't be made here; its text says why."""


class Report:
    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.started = time.monotonic()

    @contextmanager
    def check(self, name):
        """One check: it fails with an AssertionError or any other exception, and the others go on."""
        try:
            yield
        except Skip as why:
            self.skipped += 1
            print(f"skipped  {name}: {why}")
        except AssertionError as fault:
            self.failed += 1
            print(f"FAILED   {name}: {fault}")
        except Exception:
            self.failed += 1
            print(f"FAILED   {name}:\n{traceback.format_exc()}")
        else:
            self.passed += 1
            print(f"ok       {name}")
        sys.stdout.flush()

    def end(self):
        seconds = time.monotonic() - self.started
        verdict = "FAILED" if self.failed else "ok"
        print(
            f"\ntest result: {verdict}. {self.passed} passed; {self.failed} failed; {self.skipped} ignored; "
            f"0 measured; 0 filtered out; finished in {seconds:.2f}s"
        )
        return 1 if self.failed else 0
