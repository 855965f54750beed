"""`pagefleet image` says what the Pulumi program says."""

from __future__ import annotations

import hashlib
import sys

import pytest
from click.testing import CliRunner

from infra_pulumi.image import image_tag
from jobs.cli import main
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("arguments", "prefix"), [([], ""), (["--target", "cpu"], "cpu-"), (["--target", "gpu"], "gpu-")]
)
def test_the_tag_is_that_of_this_checkout(arguments: list[str], prefix: str) -> None:
    told = CliRunner().invoke(main, ["image", "tag", *arguments])
    assert (told.exit_code, told.output) == (0, f"{prefix}{image_tag(ROOT)}\n")


def test_a_target_that_the_dockerfile_lacks_has_no_tag() -> None:
    told = CliRunner().invoke(main, ["image", "tag", "--target", "tpu"])
    assert told.exit_code == 2
    assert "'tpu' is none of cpu, gpu" in told.output


def test_inputs_are_told_as_sha256sum_tells_them_and_make_the_tag() -> None:
    told = CliRunner().invoke(main, ["image", "inputs"])
    assert told.exit_code == 0
    lines = [line.split("  ") for line in told.output.splitlines()]
    assert [hashlib.sha256((ROOT / "worker/Dockerfile").read_bytes()).hexdigest(), "worker/Dockerfile"] in lines
    tree = "".join(f"{content} {name}\n" for content, name in lines)
    assert image_tag(ROOT) == hashlib.sha256(tree.encode()).hexdigest()[:16]


def test_outside_a_checkout_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "infra_pulumi", None)  # as where pagefleet was installed from a wheel
    told = CliRunner().invoke(main, ["image", "tag"])
    assert told.exit_code == 1
    assert "from a checkout" in told.output


def test_where_git_refuses_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    told = CliRunner().invoke(main, ["image", "tag"])
    assert told.exit_code == 1
    assert "git can't list the files" in told.output
