"""`python -m tests.serve_on_cpu serve MODEL …` is `transformers serve MODEL …` without accelerate, which it needs only
to share a model out among devices, and which would bring a build of torch of its own."""

from __future__ import annotations

from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.transformers import main

if __name__ == "__main__":
    ModelManager.device = property(
        lambda self: None, lambda self, value: None
    )  # goes to `from_pretrained(device_map=)`
    main()
