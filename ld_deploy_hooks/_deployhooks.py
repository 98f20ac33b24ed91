"""``deployhooks.py``: the plugin that is a file of its own, where it may lie, and whose it may be.

It lies beside what the user has chosen to run. A file that merely lies in the working directory is never loaded: the
directory may be anybody's.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["FILE", "RefusedError", "beside_script", "load"]

FILE = "deployhooks.py"
_AS_MODULE = "_ld_deploy_hooks_file"  # the name deployhooks stays free for the user's own imports


class RefusedError(Exception):
    """The file may not be loaded; the text says why, to be read after "is not loaded:"."""


def beside_script() -> Path | None:
    """Return the folder of the script that this process runs, if that has a ``deployhooks.py``.

    None under ``-c``, ``-m``, ``-P`` and ``-I``, where Python itself takes nothing from a script's folder either, and
    where programs are installed (``ld-deploy``, ``inv``, ``pytest``): nobody has written those beside a deployhooks.py.
    """
    main = sys.modules.get("__main__")
    # Under -m it has a spec; a folder or an archive that is run has one too, by the name that it runs under.
    spec = getattr(main, "__spec__", None)
    script = getattr(main, "__file__", None)
    if sys.flags.isolated or getattr(sys.flags, "safe_path", False) or not isinstance(script, str):
        return None
    if spec is not None and spec.name != "__main__":
        return None
    folder = _folder_of(script)
    return folder if folder is not None and os.path.lexists(folder / FILE) and folder not in _programs() else None


@functools.cache
def _folder_of(script: str) -> Path | None:
    # From stdin it is "<stdin>".
    # As Python finds a script's own imports: by where a link leads to.
    return Path(script).resolve().parent if Path(script).is_file() else None


def _programs() -> set[Path]:
    """Return the folders that the programs of packages are installed into."""
    import sysconfig

    schemes = (sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))
    folders = [*(sysconfig.get_path("scripts", scheme) for scheme in schemes), str(Path(sys.executable).parent)]
    return {Path(folder).resolve() for folder in folders}


def load(folder: Path) -> ModuleType | None:
    """Return the module in the ``deployhooks.py`` of ``folder``, None if there is none.

    The folder does not come onto ``sys.path``. What runs is what was judged: the very bytes, and no compiled file.

    Raises:
        RefusedError: the file belongs neither to this user nor to root.
        OSError: it cannot be read.
        BaseException: whatever the file itself raises.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    path = folder / FILE
    source = _read(path)
    if source is None:
        return None
    loaded = sys.modules.get(_AS_MODULE)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = spec_from_file_location(_AS_MODULE, path)
    assert spec is not None
    sys.modules[_AS_MODULE] = module = module_from_spec(spec)  # dataclasses look their module up there
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))
    except BaseException:
        sys.modules.pop(_AS_MODULE, None)
        raise
    return module


def _read(path: Path) -> bytes | None:
    try:
        # O_NONBLOCK: a named pipe of that name would otherwise hold the deploy up for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return None
        # A link as well: in a folder that everybody writes to, it may be anybody's.
        for owner in {status.st_uid, path.lstat().st_uid} if hasattr(os, "geteuid") else ():
            if owner not in (os.geteuid(), 0):
                raise RefusedError(
                    f"it belongs to user id {owner}, neither to this user nor to root. chown it, or name its module in "
                    "LD_DEPLOY_PLUGINS"
                )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
