"""Imported first by the fork server: it ends with the process that started it, also while it still imports.

multiprocessing's server looks whether that one still is there when all of its imports are done, which on a busy
node may be half a minute later.
"""

from __future__ import annotations

import os
import signal

from autobatch.probing.forkserver import SERVED, die_with_parent

die_with_parent(signal.SIGKILL)
if os.environ.get(SERVED, str(os.getppid())) != str(os.getppid()):
    # It ended before this line.
    os._exit(1)
