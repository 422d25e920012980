"""Where other native code finds the library that runs the kernels. See docs/embedding.md."""

from __future__ import annotations

import sys
from pathlib import Path

from . import _core

#: Beside the native module, which an editable install keeps apart from the Python files.
ROOT = Path(_core.__file__).parent
LIBRARIES = {"win32": "gradstep.dll", "darwin": "lib/libgradstep.dylib"}


def get_include() -> str:
    """The directory to give to a compiler, for `#include <gradstep/gradstep.h>`.

    Example:
        >>> import gradstep as gs
        >>> from pathlib import Path
        >>> (Path(gs.get_include()) / "gradstep" / "gradstep.h").exists()
        True
    """
    return str(ROOT / "include")


def get_library() -> str:
    """The shared library with the C API, which `gradstep` itself has loaded.

    Example:
        >>> import ctypes, gradstep as gs
        >>> ctypes.CDLL(gs.get_library()).gradstep_abi_version()
        1
    """
    return str(ROOT / LIBRARIES.get(sys.platform, "lib/libgradstep.so"))


def get_cmake_dir() -> str:
    """The directory to give to CMake as `gradstep_DIR`, for `find_package(gradstep)`.

    Example:
        >>> import gradstep as gs
        >>> from pathlib import Path
        >>> (Path(gs.get_cmake_dir()) / "gradstepConfig.cmake").exists()
        True
    """
    return str(ROOT / "lib" / "cmake" / "gradstep")
