"""What is evaluated: a trained model, or images from anywhere, and the conditions they were asked for."""
