"""The laws: every method on every tiny architecture (see ``bench.laws``)."""

import pytest

from bench.laws import decisions
from bench.laws.cases import case
from bench.laws.check import LAWS, Law
from methods.framework.errors import RefusedError
from methods.registry import method_class, names
from tests.support.tiny import FAMILIES

pytestmark = pytest.mark.laws

# A refusal is part of the contract, but only where a reason exists: all refusals there are.
REFUSALS = {
    ("random", "relabelling"): "draws by index",
}


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("law", [law for _, law in LAWS], ids=[law.__name__ for _, law in LAWS])
def test_law(name: str, family: str, law: Law) -> None:
    expected = REFUSALS.get((name, law.__name__))
    if expected is None:
        law(method_class(name), case(family))
        return
    with pytest.raises(RefusedError, match=expected):
        law(method_class(name), case(family))


@pytest.mark.parametrize("name", names())
def test_purity_across_processes(name: str) -> None:
    decisions.purity_across_processes(method_class(name), case("mixtral"))


@pytest.mark.parametrize("name", names())
def test_not_refused_everywhere(name: str) -> None:
    decisions.applies_somewhere(method_class(name))
