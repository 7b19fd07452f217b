"""The laws: every method on every tiny architecture (see ``bench.laws``)."""

import pytest

from bench.laws import decisions
from bench.laws.check import LAWS, in_full
from bench.laws.elsewhere import same_elsewhere
from bench.laws.realised import cost_is_the_file, reloads_alike
from methods.framework.errors import RefusedError
from methods.framework.method import Method
from methods.registry import method_class, names
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.laws

# A refusal is part of the contract, but only where a reason exists: all refusals there are.
REFUSALS = {
    ("random", "relabelling"): "draws by index",
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", names())
def test_every_law(name: str, family: str, subtests: pytest.Subtests) -> None:
    """One test for all laws, since they look at the same plans and the same written checkpoint."""
    cls = method_class(name)
    case = decisions.case_for(cls, family)
    for _, law in LAWS:
        with subtests.test(law.__name__):
            expected = REFUSALS.get((name, law.__name__))
            if expected is None:
                law(cls, case)
                continue
            with pytest.raises(RefusedError, match=expected):
                law(cls, case)


def test_another_process_decides_alike() -> None:
    same_elsewhere([method_class(name) for name in names()], "mixtral")


@pytest.mark.parametrize("name", names())
def test_not_refused_everywhere(name: str) -> None:
    decisions.applies_somewhere(method_class(name))


def shortened(name: str) -> bool:
    """Whether the laws try ``name`` with other settings than its own, or on fewer experts."""
    cls = method_class(name)
    return bool(cls.law_knobs) or cls.law_experts != Method.law_experts


@pytest.mark.parametrize("name", [name for name in names() if shortened(name)])
def test_what_the_laws_shorten_obeys_them_in_full_too(name: str) -> None:
    """All the steps and experts of a method's own settings, once: decided alike, in normal form, and written."""
    cls = in_full(method_class(name))
    case = decisions.case_for(cls, "mixtral")
    assert decisions.tried(cls) == cls() and case.inventory.layers[0].experts == 16
    for law in (decisions.validity, decisions.relabelling, cost_is_the_file, reloads_alike):
        law(cls, case)
