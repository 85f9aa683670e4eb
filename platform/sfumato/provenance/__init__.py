"""What generated pictures say of themselves: the door by which they leave, and what it does to them."""
