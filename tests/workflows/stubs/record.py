"""Tells the test that an action was used, with what."""

import json
import os
import sys

given = json.loads(os.environ["WITH"])
with open(os.environ["TEST_CALLS"], "a") as calls:
    calls.write(
        json.dumps({"action": sys.argv[1], "with": {name: text for name, text in given.items() if text}}) + "\n"
    )
