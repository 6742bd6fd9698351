"""Every recipe of prefetch-cli-recipes(7) has its test."""

from tests.launchers import test_recipes as under_slurm
from tests.recipes import section, test_manifests, test_scripts

MODULES = (test_scripts, test_manifests, under_slurm)


def test_each_block_has_a_name_of_its_own_and_a_test() -> None:
    names = [one.name for one in section.recipes()]
    assert len(names) >= 10
    assert all(names), [one.text for one in section.recipes() if not one.name]
    assert len(set(names)) == len(names)
    assert set(names) == {name for module in MODULES for name in module.RECIPES}


def test_each_recipe_for_slurm_is_run_by_a_real_one() -> None:
    batch = {one.name for one in section.recipes() if "#SBATCH" in one.text}
    assert batch
    assert batch <= set(under_slurm.RECIPES)


def test_a_recipe_names_at_most_one_model() -> None:
    for one in section.recipes():
        assert len(one.models) <= 1, one


def test_libraries_are_in_one_recipe_only() -> None:
    assert [one.name for one in section.recipes() if "--libraries" in one.text] == ["slurm-beside"]
