"""`sfumato recipe`: look at recipes without running them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import typer

from sfumato.cli.arguments import AsJson, Overrides, RecipeFile, Trust, show

app = typer.Typer(name="recipe", help="Show and check recipes without running them.", no_args_is_help=True)


@app.command("show")
def recipe_show(recipe: RecipeFile, overrides: Overrides = None, trust: Trust = False) -> None:
    """Print the resolved recipe: bases merged, overrides applied, all defaults written out."""
    from sfumato import recipe as recipes
    from sfumato.core.finding import built_in_only

    with built_in_only(not trust):
        sys.stdout.write(recipes.load(recipe, overrides or []).to_yaml())


@app.command("check")
def recipe_check(
    recipe: RecipeFile, overrides: Overrides = None, trust: Trust = False, as_json: AsJson = False
) -> None:
    """Report everything that is wrong with a recipe, without starting anything."""
    from sfumato import recipe as recipes
    from sfumato.core.finding import built_in_only
    from sfumato.data.columns import spec_of
    from sfumato.data.format.manifest import Manifest
    from sfumato.data.order.pools import pools_of
    from sfumato.runtime.runs import pretrained, sizes

    with built_in_only(not trust):
        loaded = pretrained.resolved(recipes.load(recipe, overrides or []), Path.cwd())
        packed = Manifest.exists(loaded.data.path)
        manifest = Manifest.load(loaded.data.path) if packed else None
        spec = spec_of(loaded.data, manifest) if manifest else None
        loaded.check(spec, manifest.samples if manifest else None)
        if manifest:
            sizes.check(loaded, manifest, pools_of(loaded.data, manifest))
    text = f"{recipe}: fine" + (
        "" if packed else f"; {loaded.data.path} is not packed yet, so not checked against it"
    )
    show({"recipe": str(recipe), "ok": True, "data_checked": packed}, as_json, text)


@app.command("schema")
def recipe_schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from sfumato import recipe as recipes

    print(json.dumps(recipes.schema(), indent=1))
