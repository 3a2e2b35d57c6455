"""The command line as a user meets it: in a process of its own."""

import os
import subprocess
import sys


def diffode(*arguments, cwd=None, code=0):
    """Run the command and hold it to an exit code, unless that is None."""
    done = subprocess.run(
        [sys.executable, "-m", "diffode", *arguments], capture_output=True, text=True, cwd=cwd, env=os.environ, check=False
    )
    assert code is None or done.returncode == code, done.stdout + done.stderr
    return done
