"""What the network learns, by objective: its settings, its loss, and how images are drawn from it."""
