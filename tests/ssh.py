"""The examples' web and SSH servers, for tests.

::

    with SSHHosts(tmp_path, ["web1", "web2"]) as hosts:
        subprocess.run(["fab", "--ssh-config", hosts.config, "-H", "web1,web2", "deploy"], …)
        assert (hosts["web1"].home / "released").exists()
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["Host", "SSHHosts", "WebServer"]

# By its path: with the folder on sys.path, `import fabric` would find examples/fabric where Fabric is not installed.
_spec = importlib.util.spec_from_file_location("loopback", Path(__file__).parent.parent / "examples" / "loopback.py")
assert _spec is not None
assert _spec.loader is not None
_loopback = sys.modules["loopback"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_loopback)

Host, SSHHosts, WebServer = _loopback.Host, _loopback.SSHHosts, _loopback.WebServer
