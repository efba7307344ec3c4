"""onnxruntime, imported without its telemetry.

Since 1.29 its wheels for Linux write a device id and a database into the user's cache when they are imported, and report
sessions to their maker. ORT_DISABLE_TELEMETRY turns that off; it is read during the import only.
"""

from __future__ import annotations

import os
import sys
import threading
from types import ModuleType

SWITCH = "ORT_DISABLE_TELEMETRY"
_lock = threading.Lock()


def import_onnxruntime() -> ModuleType:
    """The module onnxruntime. Who imported it before, or has set the switch in the environment, has decided for themselves."""
    with _lock:
        ours = "onnxruntime" not in sys.modules and SWITCH not in os.environ
        if ours:
            os.environ[SWITCH] = "1"
        try:
            import onnxruntime
        finally:
            if ours:
                del os.environ[SWITCH]
    module: ModuleType = onnxruntime
    return module
