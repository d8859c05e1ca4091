from __future__ import annotations

from pathlib import Path

import pytest

from plopcli.errors import UsageError
from plopcli.methods import METHODS, get_method
from plopcli.resolution.layers import resolve_settings
from plopcli.settings.sections import MethodSettings


def test_methods_are_found_without_regard_to_case() -> None:
    assert get_method("PLOP") is get_method("plop") is METHODS["plop"]
    assert get_method("MiB") is METHODS["mib"]
    assert get_method("LwF-MC") is get_method("lwf_mc") is get_method("LWF_MC ") is METHODS["lwf-mc"]


def test_names_in_settings_may_be_written_as_the_papers_do(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('[method]\nname = "LwF-MC"\nicarl_factor = 3.0\n')
    for resolved in (
        resolve_settings({}, config=file, environment={}),
        resolve_settings({"method.name": "lwf_mc", "method.icarl_factor": 3.0}, environment={}),
        resolve_settings({"method.icarl_factor": 3.0}, environment={"PLOP_METHOD_NAME": "LWF-MC"}),
    ):
        assert resolved.settings.method == METHODS["lwf-mc"].Settings(icarl_factor=3.0)
        assert resolved.settings.run_folder.name == "voc-15-1-overlapped-lwf-mc-s42"


def test_unknown_methods_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="'plob'") as error:
        get_method("plob")
    assert error.value.hint == "Did you mean plop?"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_describes_itself_and_its_settings(name: str) -> None:
    method = METHODS[name]
    settings = method.Settings()
    assert isinstance(settings, MethodSettings)
    assert settings.name == name == name.lower()
    assert method.summary
    assert method.source
    assert [name for name, field in method.Settings.model_fields.items() if not field.description] == []


def test_joint_merges_the_steps() -> None:
    assert METHODS["joint"].merges_steps
    assert not METHODS["plop"].merges_steps
