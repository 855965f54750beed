"""Versions of the libraries that decide what is read, for run.json and the image's self-test."""

from __future__ import annotations

import importlib.metadata
import platform

LIBRARIES = (
    "rapidocr",
    "onnxruntime",
    "openvino",
    "torch",
    "transformers",
    "pypdfium2",
    "Pillow",
    "pillow-heif",
    "numpy",
    "opencv-python-headless",
)


def library_versions() -> dict[str, str]:
    """Of Python, and of those libraries that are installed; names in lower case."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library.lower()] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
