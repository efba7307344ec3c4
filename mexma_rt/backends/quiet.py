"""Imports onnxruntime without its telemetry.

Since 1.29, importing its Linux wheels writes a device id and a database into the user's cache, and reports sessions to the
vendor. ORT_DISABLE_TELEMETRY turns that off; it is read only during the import.
"""

from __future__ import annotations

import os
import sys
import threading
from types import ModuleType

SWITCH = "ORT_DISABLE_TELEMETRY"
_lock = threading.Lock()


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime; respects an earlier import and a user's own setting of the switch in the environment."""
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
