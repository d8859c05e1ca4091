from __future__ import annotations

import pytest

from plopcli.errors import UsageError
from plopcli.methods import METHODS, get_method
from plopcli.settings.sections import MethodSettings


def test_methods_are_found_without_regard_to_case() -> None:
    assert get_method("PLOP") is get_method("plop") is METHODS["plop"]


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
    assert all(field.description for field in method.Settings.model_fields.values())


def test_only_joint_merges_the_steps() -> None:
    assert [name for name, method in METHODS.items() if method.merges_steps] == ["joint"]
