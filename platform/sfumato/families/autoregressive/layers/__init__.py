"""Networks in plain PyTorch and their blocks; `networks/` has the settings that choose among them."""
