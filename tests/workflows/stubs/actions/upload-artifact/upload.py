"""Copies a folder or a file. What is forbidden: actions/toolkit, path-and-artifact-name-validation."""

import os
import re
import shutil
from pathlib import Path

source, name = Path(os.environ["FROM"]), os.environ["NAME"]
target = Path(os.environ["TEST_ARTIFACTS"]) / name
if not re.fullmatch(r'[^":<>|*?\r\n\\/]+', name):
    raise SystemExit(f"the artifact name is not valid: {name}")
files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
files = [path for path in files if not any(part.startswith(".") for part in path.relative_to(source).parts)]
if not files:
    raise SystemExit(f"no files were found with the provided path: {source}")
for path in files:
    inside = path.relative_to(source if source.is_dir() else source.parent)
    if re.search(r'[":<>|*?\r\n]', inside.as_posix()):
        raise SystemExit(f"the path for one of the files in artifact is not valid: {inside}")
    (target / inside).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target / inside)
