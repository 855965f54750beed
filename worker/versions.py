"""Versions of the libraries that decide what is read, for run.json and the image's self-test."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable

LIBRARIES = (
    "rapidocr",
    "onnxruntime",
    "openvino",
    "torch",
    "torchvision",
    "transformers",
    "tokenizers",
    "pypdfium2",
    "Pillow",
    "pillow-heif",
    "numpy",
    "opencv-python-headless",
)


def library_versions() -> dict[str, str]:
    """Of Python, and of those libraries that are installed; names in lower case."""
    return {"python": platform.python_version(), **versions_of(LIBRARIES)}


def versions_of(libraries: Iterable[str]) -> dict[str, str]:
    """Of those that are installed; names in lower case."""
    found = {}
    for library in libraries:
        try:
            found[library.lower()] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
