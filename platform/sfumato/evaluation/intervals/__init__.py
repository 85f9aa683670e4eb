"""How much a figure could have varied: standard errors and confidence intervals."""
